"""Run sequences of different lengths as one padded batch, with `lengths=` instead of pack_padded_sequence.

The program compares outputs and last states with those of `nn.GRU` on packed sequences. It uses a GPU if there is one:

    python scripts/examples/ragged.py
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import triton_gru

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (100, 91, 73, 64, 40, 22, 9, 1)


@torch.no_grad()
def main(device: str = DEVICE, lengths: tuple[int, ...] = LENGTHS, hidden: int = 256) -> None:
    """Run the batch by `nn.GRU` and by triton_gru, and compare the results."""
    torch.manual_seed(0)
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # not TF32, so that results differ only by rounding in fp32
    gru = nn.GRU(40, hidden, num_layers=2, batch_first=True, bidirectional=True, device=device).eval()
    x = torch.randn(len(lengths), max(lengths), 40, device=device)
    lengths = torch.tensor(lengths)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed_output, expected_h_n = gru(packed)
    expected, _ = pad_packed_sequence(packed_output, batch_first=True)

    triton_gru.accelerate(gru)  # in place, with the same parameters
    lengths = lengths.to(device)  # lengths may stay on the GPU: no call waits for them
    output, h_n = gru(x, lengths=lengths)
    served_by = gru.plan(x, lengths=lengths).kernel

    error = max((output - expected).abs().max().item(), (h_n - expected_h_n).abs().max().item())
    tolerance = 4 * hidden**0.5 * torch.finfo(x.dtype).eps  # rounding grows like the root of the number of terms
    print(f"{gru}\n{len(x)} sequences of {lengths.min()} to {lengths.max()} steps in one padded batch")
    print(f"served by: {served_by} ({'nn.GRU itself' if served_by == 'torch' else 'a Triton kernel'})")
    print(f"largest difference from nn.GRU on packed sequences: {error:.1e} (allowed: {tolerance:.1e})")
    assert error <= tolerance


if __name__ == "__main__":
    main()
