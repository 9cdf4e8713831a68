"""Tests of the primitives in kernels/isa.py, one by one."""

import itertools

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from triton_gru.kernels import isa
from triton_gru.launch.kernel_launch import Launch

from ..oracle import tf32
from ..ptx import snippets

SPECIAL = [0.0, -0.0, 1.0, -1.0, 3.4e38, -3.4e38, float("inf"), -float("inf"), 1e-38, 88.8, -88.8, 1e-20]
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def draw_numbers(device: str) -> torch.Tensor:
    """Return 2048 numbers in fp32: special values, and random numbers of magnitudes from about 1e-6 to 1e5."""
    count = 2048 - len(SPECIAL)
    spread = torch.randn(count) * 10.0 ** torch.randint(-6, 6, (count,))
    return torch.cat([torch.tensor(SPECIAL), spread]).to(device)


@triton.jit
def _apply(x, y, FUNCTION: tl.constexpr, DTYPE: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at)
    if FUNCTION == "tf32":
        value = isa.round_to_tf32(value)
    elif FUNCTION == "sigmoid":
        value = isa.sigmoid(value, DTYPE)
    else:
        value = isa.tanh(value, DTYPE)
    tl.store(y + at, value)


def apply(function: str, x: torch.Tensor, dtype: torch.dtype):
    """Return the results of a function of isa.py, named as in `_apply`, for the elements of ``x``."""
    y = torch.full_like(x, float("nan"))
    Launch(_apply, (1,), (x, y), {"FUNCTION": function, "DTYPE": DTYPES[dtype], "N": x.numel()}).start()
    return y


def test_rounding_to_tf32(device):
    x = draw_numbers(device)
    # Leave out ties, which `tf32` rounds to even and the kernels away from zero. Ties and infinities are tested below.
    # Leave out the largest numbers, too.
    x = x[(x.abs() < 3e38) & (x.view(torch.int32) & 0x1FFF != 0x1000)]
    x = x[: 1 << (len(x).bit_length() - 1)]  # a power of two, as Triton needs
    assert torch.equal(apply("tf32", x, torch.float32).double().cpu(), tf32(x.double().cpu()))
    ties = torch.tensor([1 + 2**-11, -1 - 2**-11, 1 + 3 * 2**-11, 2.0], device=device)
    assert apply("tf32", ties, torch.float32).tolist() == [1 + 2**-10, -1 - 2**-10, 1 + 2**-9, 2.0]
    nans = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF], dtype=torch.int32, device=device).view(torch.float32)
    assert apply("tf32", nans, torch.float32).isnan().all()
    infinities = torch.tensor([float("inf"), -float("inf")], device=device)
    assert torch.equal(apply("tf32", infinities, torch.float32), infinities)


@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(function, dtype, device):
    x = torch.cat([draw_numbers(device), torch.linspace(-12, 12, 2048, device=device)])
    expected = getattr(torch, function)(x.double())
    allowed = 2.5 * 2**-23 if dtype == torch.float32 else 2**-10.9
    assert (apply(function, x, dtype).double() - expected).abs().max() <= allowed
    assert apply(function, torch.full((16,), float("nan"), device=device), dtype).isnan().all()


@triton.jit
def _load(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, isa.load(x + at))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32, torch.int64, torch.uint8], ids=str)
def test_load_returns_the_values_in_memory(dtype, device):
    x = torch.randint(256, (64,), device=device).to(dtype)
    y = torch.full((64,), -1, device=device).to(torch.int32 if dtype == torch.uint8 else dtype)
    Launch(_load, (1,), (x, y), {"N": 64}).start()
    assert torch.equal(y, x.to(y.dtype))


@triton.jit
def _load_and_convert_gates(gi, out, OFFSET: tl.constexpr, GATE: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    DTYPE: tl.constexpr = gi.dtype.element_ty
    raw = isa.load_gate_inputs(gi, OFFSET, GATE, R, C)
    at = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    for gate in tl.static_range(3):
        tl.store(out + gate * R * C + at, isa.gate_inputs_to_float(raw[gate], DTYPE, R, C))


@pytest.mark.parametrize("dtype", DTYPES)
def test_loaded_gates_keep_their_order(dtype, device):
    rows, cols, gate, offset = 16, 8, 160, 16  # gates are 160 elements apart, of which a tile has 128
    gi = torch.randn(offset + 3 * gate, device=device).to(dtype)
    gi[offset + 5] = float("nan")
    gi[offset + gate + 4] = -float("inf")
    out = torch.full((3, rows, cols), float("nan"), device=device)
    Launch(_load_and_convert_gates, (1,), (gi, out), {"OFFSET": offset, "GATE": gate, "R": rows, "C": cols}).start()
    for index in range(3):
        expected = gi[offset + index * gate :][: rows * cols].view(rows, cols).float()
        assert torch.equal(out[index].nan_to_num(7), expected.nan_to_num(7))


@triton.jit
def _store_masked(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    isa.store(y + at, tl.load(x + at), at % 3 == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_store_writes_only_where_the_mask_is_set(dtype, device):
    x = torch.randn(256, device=device).to(dtype)
    mask = torch.arange(256, device=device) % 3 == 0
    y = torch.full_like(x, float("nan"))
    Launch(_store_masked, (1,), (x, y), {"N": 256}).start()
    assert torch.equal(y[mask], x[mask])
    assert y[~mask].isnan().all()


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("bits", [16, 32])
def test_missing_ptx_recognizes_missing_elements(bits, capability):
    """Compare with the definition, an element of -1, on all pairs of parts whose halves are in ``edges``.

    `missing_ptx` returns PTX that adds a part to what has been seen, and PTX that concludes whether one was missing.
    """
    add, conclude = isa.missing_ptx(bits, capability)
    edges = [0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 5]
    parts = [upper << 16 | lower for upper in edges for lower in edges]
    first, second = (np.array(column, np.uint32) for column in zip(*itertools.product(parts, parts)))
    if bits == 16:
        missing = sum((half & 0xFFFF) == 0xFFFF for part in (first, second) for half in (part, part >> 16)) > 0
    else:
        missing = (first == 0xFFFFFFFF) | (second == 0xFFFFFFFF)
    present = "mov.b32 %r5, 0; " + add.replace("NEXT", "%r5")
    both = add.replace("NEXT", "%a") + add.replace("NEXT", "%b")
    # Check the two parts, and the two parts after or before a part without a missing element.
    for adds in (both, present + both, both + present):
        body = (
            f"{{ .reg .b32 a, b, seen; .reg .pred missing; mov.b32 seen, 0; {adds} {conclude} "
            "mov.pred %out, missing; }"
        )
        assert np.array_equal(snippets.compute(body, np.bool_, first, second), missing), adds
