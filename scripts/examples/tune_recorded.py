"""Record the shapes that a service calls its GRUs with, and tune the kernels for these shapes.

The program saves the shapes to a small JSON file. Without a GPU it prints the command to run on a machine with a GPU:

    python scripts/examples/tune_recorded.py [FILE.json [SECONDS]]
"""

import random
import sys

import torch
from torch import nn

import triton_gru

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def serve(model: nn.GRU, requests: int, max_steps: int) -> None:
    """Answer requests of many lengths, some of them in batches. Your service would be here."""
    draw = random.Random(0)
    for _ in range(requests):
        batch = draw.choice((1, 1, 1, 8))  # a quarter of the requests are batches of 8
        steps = draw.randint(1 + max_steps // 3, max_steps)
        model(torch.randn(steps, batch, model.input_size, device=model.weight_hh_l0.device))


def main(
    path: str = "shapes.json",
    seconds: float = 120,
    device: str = DEVICE,
    requests: int = 50,
    max_steps: int = 64,
    hidden: int = 256,
) -> None:
    """Record the shapes of requests and save them. If kernels run here, tune for these shapes within ``seconds``."""
    torch.manual_seed(0)
    gru = triton_gru.accelerate(nn.GRU(40, hidden, device=device).eval())
    with triton_gru.record_shapes() as shapes:  # records all calls of GRUs in this block, in any module
        serve(gru, requests, max_steps)
    shapes.save(path)
    assert sum(shapes.seen.values()) == requests  # `seen` counts the calls of each exact shape
    print(f"{requests} calls of {len(shapes.seen)} shapes, {len(shapes)} to tune, kept in {path}:")
    # The shapes to tune are fewer, as steps and batches are rounded up. Those with the most steps in total come first.
    for problem in shapes:
        print(f"  up to {problem.steps} steps, batches up to {problem.batch_size}, H = {problem.hidden_size}")

    if gru.plan(torch.randn(1, 1, 40, device=device)).device is None:  # no kernel runs on this machine
        print("served by: nn.GRU, as there is no GPU here. On the machine that has one, run:")
        print(f"  triton-gru tune --recorded {path}")
        return
    for tuned in triton_gru.tune(shapes, device=device, budget=seconds, report=print):
        print(f"{tuned}\n  kept in {tuned.table_path}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(float, sys.argv[2:3]))
