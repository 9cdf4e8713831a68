"""Runs with triton_gru the two GRUs that articles teach: one written by hand, and one of nn.GRU + nn.Linear.

Then it compares RNN, LSTM and GRU in numbers.

Without a GPU the compiled kernels are executed on the CPU (tests/ptx), which needs gcc.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # perf and the tests are not installed

import torch
from torch import Tensor, nn

import triton_gru
from tests.ptx.device import emulate_gpu
from triton_gru.accuracy import set_precision
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.planner import KERNELS

ROOT = pathlib.Path(__file__).resolve().parents[1]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TOLERANCE = 5e-6  # in fp32, for outputs of about 1, each of which is a sum over the hidden units


# ---- by hand


def make_parameters(inputs: int, hidden: int, outputs: int) -> list[Tensor]:
    """Return random parameters: W_xz, W_hz, b_z, W_xr, W_hr, b_r, W_xh, W_hh, b_h, and W_hq, b_q of the output."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE) * hidden**-0.5

    gate_shapes = (inputs, hidden), (hidden, hidden), (hidden,)
    gates = [draw(*shape) for _ in range(3) for shape in gate_shapes]
    return [*gates, draw(hidden, outputs), draw(outputs)]


def gru_by_hand(inputs: Tensor, state: Tensor, parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute the article's formulas: inputs [T, B, I], state [B, H] -> outputs [T, B, Q] and the last state."""
    W_xz, W_hz, b_z, W_xr, W_hr, b_r, W_xh, W_hh, b_h, W_hq, b_q = parameters
    H = state
    outputs = []
    for X in inputs:
        Z = torch.sigmoid(X @ W_xz + H @ W_hz + b_z)
        R = torch.sigmoid(X @ W_xr + H @ W_hr + b_r)
        H_tilde = torch.tanh(X @ W_xh + (R * H) @ W_hh + b_h)
        H = Z * H + (1 - Z) * H_tilde
        outputs.append(H @ W_hq + b_q)
    return torch.stack(outputs), H


class Converted(nn.Module):
    """A module that computes the same as `gru_by_hand` by triton_gru. The output layer of all steps is one product."""

    def __init__(self, parameters: list[Tensor]):
        super().__init__()
        *gates, W_hq, b_q = parameters
        self.gru = triton_gru.convert.from_gates(gates)
        self.output = nn.Linear(*W_hq.shape, device=W_hq.device)
        with torch.no_grad():
            self.output.weight.copy_(W_hq.T)
            self.output.bias.copy_(b_q)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.gru(inputs, state[None])
        return self.output(states), last[0]


# ---- as nn.GRU + nn.Linear


class GRUModel(nn.Module):
    """A GRU and a linear layer on its last output: x [B, T, I] -> [B, Q]."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, output_size: int):
        super().__init__()
        self.num_layers, self.hidden_size = num_layers, hidden_size
        self.gru = nn.GRU(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size, device=x.device)
        output, _ = self.gru(x, h0)
        return self.fc(output[:, -1])


@torch.no_grad()
def compare_models(backends: tuple[str, ...]) -> None:
    """Compare both models by triton_gru, on each of ``backends``, with the same models in plain torch."""
    set_precision("fp32")
    torch.manual_seed(0)
    steps, batch, inputs, hidden, outputs = (35, 32, 28, 256, 28) if GPU else (4, 3, 28, 32, 28)
    print(f"by hand, T={steps} B={batch} H={hidden} on the {DEVICE}: reset before the product, output H @ W_hq + b_q")
    parameters = make_parameters(inputs, hidden, outputs)
    X, H = torch.randn(steps, batch, inputs, device=DEVICE), torch.randn(batch, hidden, device=DEVICE)
    model = Converted(parameters)
    expected = gru_by_hand(X, H, parameters)
    for backend in backends:
        model.gru.backend = backend
        compare(model.gru.plan(X, H[None]).kernel, model(X, H), expected)

    print("nn.GRU + nn.Linear, batch first, two layers, h0: after triton_gru.accelerate(model)")
    model = GRUModel(inputs, hidden, 2, outputs).to(DEVICE).eval()
    x = X.transpose(0, 1)
    expected = model(x)
    triton_gru.accelerate(model)
    for backend in backends:
        model.gru.backend = backend
        compare(model.gru.plan(x).kernel, [model(x)], [expected])


def compare(kernel: str, results, expected_results) -> None:
    """Print the largest difference of two sequences of tensors, and end the program unless it is in the tolerance."""
    differences = [(result - expected).abs().max() for result, expected in zip(results, expected_results)]
    errors = torch.stack(differences)
    print(f"    {kernel:10} largest difference from plain torch {errors.max():.1e}", flush=True)
    if not (errors <= TOLERANCE).all():  # or an error is NaN
        raise SystemExit(f"the difference is more than {TOLERANCE:.1e}, which rounding does not explain")


# ---- RNN, LSTM and GRU


def print_comparison(measures_here: bool, out: pathlib.Path) -> None:
    """Print gates, parameters, FLOPs and bytes per step, and times, from the sweep ``cells`` of perf/.

    The sweep runs if ``measures_here``, or if perf/results has no file of this GPU, or of a CPU. It writes to ``out``.
    """
    from perf.record import machine_name
    from perf.report import compare_cells, keep_latest, load
    from perf.tables import format_table

    name = f"cells-{machine_name(DEVICE)}.csv"
    path = ROOT / "perf/results" / name
    if measures_here or not path.exists():
        command = [sys.executable, "-m", "perf", "run", "--sweep", "cells", "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
        path = out / name
    rows = load([path])
    machines = ", ".join(name.removeprefix("none: ") for name in rows["gpu_name"].unique())
    print(f"RNN, LSTM and GRU, measured on: {machines}")
    if DEVICE == "cpu":
        print("(on a CPU nn.GRU serves all calls of triton_gru: these times say nothing about the kernels' speed)")
    print(format_table(compare_cells(keep_latest(rows))))


def main() -> None:
    """Compare both models with plain torch on this machine's device, and without a GPU also on emulated kernels.

    Then print RNN, LSTM and GRU in numbers.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="time RNN, LSTM and GRU here: 1 to 3 minutes on a GPU")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/article", help="folder for measurements")
    options = parser.parse_args()
    compare_models(("auto", "grid", "step") if GPU else ("auto",))  # H is too large for block on every GPU
    if not GPU and shutil.which("gcc"):
        print("\nthe kernels, compiled for an H200 and executed on the CPU")
        with emulate_gpu(KNOWN_DEVICES["H200"], seed=0):
            compare_models(KERNELS)
    elif not GPU:
        print("\nthe kernels are left out: executing them on the CPU needs gcc, which is missing")
    print()
    print_comparison(options.measure, options.out.resolve())


if __name__ == "__main__":
    main()
