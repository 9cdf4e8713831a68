"""Run a GRU frame by frame with `gru.stream(batch_size)`, which keeps the state of every sequence.

After half of the frames, sequence 1 ends and a new one begins in its row of the batch, so the row's state is reset. The
program compares the outputs with those of `nn.GRU` on whole sequences. It uses a GPU if there is one:

    python scripts/examples/streaming.py
"""

import time

import torch
from torch import nn

import triton_gru

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def main(device: str = DEVICE, frames: int = 200, batch: int = 4, hidden: int = 256) -> None:
    """Run the frames one by one, compare the outputs with those of whole sequences, and time a frame."""
    torch.manual_seed(0)
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # not TF32, so that results differ only by rounding in fp32
    nn_gru = nn.GRU(40, hidden, num_layers=2, device=device).eval()
    x = torch.randn(frames, batch, 40, device=device)
    ended = torch.arange(batch, device=device) == 1
    first_half, h = nn_gru(x[: frames // 2])
    second_half, _ = nn_gru(x[frames // 2 :], h.masked_fill(ended[:, None], 0))

    stream = triton_gru.convert.from_torch(nn_gru).stream(batch)
    stream(x[0])  # the first frame compiles the kernel
    stream.reset()
    outputs, start = [], time.perf_counter()
    for t, frame in enumerate(x):
        if t == frames // 2:
            stream.reset(ended)
        outputs.append(stream(frame))
    error = (torch.stack(outputs) - torch.cat([first_half, second_half])).abs().max().item()  # item() waits for the GPU
    microseconds = 1e6 * (time.perf_counter() - start) / frames
    served_by = stream.plan(x[0]).kernel

    tolerance = 4 * hidden**0.5 * torch.finfo(x.dtype).eps  # rounding grows like the root of the number of terms
    print(f"{frames} frames of {batch} sequences, H = {hidden}, 2 layers; sequence 1 ends after {frames // 2} frames")
    print(f"served by: {served_by} ({'nn.GRU itself' if served_by == 'torch' else 'a Triton kernel'})")
    if device == "cuda":
        print(f"{microseconds:.1f} us a frame")
    print(f"largest difference from nn.GRU on whole sequences: {error:.1e} (allowed: {tolerance:.1e})")
    assert error <= tolerance


if __name__ == "__main__":
    main()
