"""Tests of every scan kernel at small sizes: chunks, NaNs, determinism, unusual layouts, cells."""

import pytest
import torch

import triton_gru
from triton_gru.launch import execute
from triton_gru.plan.planner import KERNELS

from ..calls import make_gru, make_input, run_checked
from ..conftest import poison_memory
from ..oracle import PRECISIONS, assert_accurate, compute_baseline, compute_exact, set_precision
from ..pairwise import pairwise

pytestmark = pytest.mark.parametrize("kernel", KERNELS)


@pytest.mark.parametrize("precision, batch_first", [("fp32", False), ("fp16", True)])
def test_results_do_not_depend_on_the_chunks(kernel, precision, batch_first, device, launched, monkeypatch):
    gru = make_gru(6, 20, precision, device, kernel, num_layers=2, batch_first=batch_first)
    steps = 7
    x = make_input("batch_first" if batch_first else "time_first", steps, 3, 6, PRECISIONS[precision][0], device)
    hx = torch.randn(2, 3, 20, device=device).to(x.dtype)
    expected, expected_h_n = run_checked(gru, x, hx, precision, launched)
    assert launched.count("input_projection") == 2
    # Chunks of one step, or of a few. The gate inputs of a step take fewer bytes for ``grid``.
    for workspace in (0, 2_000) if kernel == "grid" else (0, 5_000):
        monkeypatch.setattr(execute, "WORKSPACE_BYTES", workspace)
        launched.clear()
        output, h_n = run_checked(gru, x, hx, precision, launched)
        assert launched.count("input_projection") > 2
        assert torch.equal(output, expected)
        assert torch.equal(h_n, expected_h_n)


def test_workspace_does_not_grow_with_the_sequence(kernel, device):
    gru = make_gru(4, 16, "fp32", device, kernel, num_layers=2)
    largest = 0
    for steps in (10, 1_000_000):
        x = torch.empty(1, 8, 4, device=device).expand(steps, 8, 4)
        call = triton_gru.call.bind.bind_gru(gru, x, None)
        plan = gru.plan(x)
        output, h_n = torch.empty(1, device=device), torch.empty(2, 8, 16, device=device)
        projection = next(execute.launches(call, plan.config, plan.device, output, h_n))
        gi = projection.args[projection.kernel.arg_names.index("gi")]
        largest = max(largest, gi.nbytes)
        assert largest <= execute.WORKSPACE_BYTES
    assert largest > execute.WORKSPACE_BYTES / 2


# Precision, the tensor with a value that is not finite, that value, hidden size, and reset after.
PLANTED = (
    tuple(PRECISIONS), ("x", "hx", "w_hh", "w_ih"), (float("nan"), float("inf"), -float("inf")), (1, 16, 25),
    (True, False),
)  # fmt: skip


@pytest.mark.parametrize("precision, target, value, hidden, reset_after", pairwise(*PLANTED))
def test_nan_and_inf_stay_in_their_row(kernel, precision, target, value, hidden, reset_after, device, launched):
    torch.manual_seed(3)
    gru = make_gru(5, hidden, precision, device, kernel, reset_after=reset_after)
    x, hx = torch.randn(2, 9, 5, device=device).to(gru.weight_hh_l0.dtype), torch.randn(1, 9, hidden, device=device)
    hx = hx.to(x.dtype)
    # A vector in which one element is replaced: of row 2 of the batch for x, and of row 8 for hx.
    planted = {"x": x[1, 2], "hx": hx[0, 8], "w_hh": gru.weight_hh_l0[hidden], "w_ih": gru.weight_ih_l0[-1]}[target]
    with torch.no_grad():
        planted[len(planted) // 2] = value
    output, _ = run_checked(gru, x, hx, precision, launched)
    if target in ("x", "hx"):
        clean = [row for row in range(9) if row != {"x": 2, "hx": 8}[target]]
        assert output[:, clean].isfinite().all()


@pytest.mark.parametrize("steps, reset_after, value", [(1, True, float("nan")), (2, False, float("inf"))])
def test_a_weight_that_is_not_finite_gives_nan_with_a_state_of_zeros(
    kernel, steps, reset_after, value, device, launched
):
    """Check that zero times this weight is NaN, without hx and in a row that restarts.

    With ``reset_after=False``, NaN of r in one unit makes r h NaN, and with it the row.
    """
    gru = make_gru(3, 20, "fp32", device, kernel, reset_after=reset_after)
    x, hx = torch.randn(steps, 3, 3, device=device), torch.randn(1, 3, 20, device=device)
    resets = torch.zeros(steps, 3, dtype=torch.bool, device=device)
    resets[0, 1] = True
    with torch.no_grad():
        gru.weight_hh_l0[5, 7] = value  # from unit 7 to r of unit 5
    output, _ = run_checked(gru, x, None, "fp32", launched)
    assert output[0, :, 5].isnan().all()
    output, _ = run_checked(gru, x, hx, "fp32", launched, resets=resets)
    assert output[0, 1, 5].isnan()
    assert reset_after or output[0, 1].isnan().all()


@pytest.mark.parametrize("payload", [0x7F800001, 0x7FFFFFFF, 0x7FC00000, -1, -0x400001])
def test_a_nan_of_any_payload_stays_nan(kernel, payload, device, launched):
    """Check payloads that a conversion could round to an infinity or a zero."""
    gru = make_gru(3, 16, "tf32", device, kernel)
    hx = torch.zeros(1, 2, 16, device=device)
    hx.view(torch.int32)[0, 1, 5] = payload
    x = torch.randn(3, 2, 3, device=device)
    output, h_n = run_checked(gru, x, hx, "tf32", launched)
    assert output[:, 1].isnan().all()
    assert h_n[0, 1].isnan().all()


def test_large_gates_saturate(kernel, device, launched):
    # Draw the same weights on every device. If two weights nearly cancelled, a gate would not saturate, and would have
    # the rounding error of 1e4.
    torch.manual_seed(0)
    gru = make_gru(2, 16, "fp32", "cpu", kernel).to(device)
    x = torch.tensor([1e4, -1e4, 3e38, -3e38], device=device)[:, None, None].expand(4, 3, 2)
    output, _ = run_checked(gru, x, None, "fp32", launched)
    assert output.isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_error_does_not_grow_over_a_long_sequence(kernel, precision, device, launched):
    torch.manual_seed(0)
    gru = make_gru(8, 24, precision, device, kernel)
    steps = 64 if device == "cpu" else 512
    run_checked(gru, torch.randn(steps, 2, 8, device=device).to(gru.weight_hh_l0.dtype), None, precision, launched)


def test_runs_are_bitwise_equal(kernel, device):
    gru = make_gru(9, 40, "bf16", device, kernel)
    x = torch.randn(3, 12, 9, device=device).bfloat16()
    with torch.no_grad():
        first, again = gru(x), gru(x)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_inputs_and_weights_do_not_change(kernel, device):
    gru = make_gru(9, 40, "fp16", device, kernel, num_layers=2)
    x, hx = torch.randn(3, 12, 9, device=device).half(), torch.randn(2, 12, 40, device=device).half()
    before = [t.clone() for t in (x, hx, *gru.parameters())]
    gru(x, hx)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, hx, *gru.parameters())))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rows_that_are_not_aligned_to_vectors(kernel, batch_first, precision, device, launched):
    """Check rows of 40 features, a multiple of a vector, with a stride of 41.

    Only every eighth row is aligned. Exception: in fp32 every fourth row is.
    """
    gru = make_gru(40, 16, precision, device, kernel, batch_first=batch_first)
    x = torch.randn(8, 8, 41, device=device).to(gru.weight_hh_l0.dtype)[..., :40]
    run_checked(gru, x, None, precision, launched)


def test_weights_that_are_not_contiguous(kernel, device, launched):
    gru = make_gru(5, 20, "fp32", device, kernel)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        weight = getattr(gru, name)
        setattr(gru, name, torch.nn.Parameter(weight.detach().T.contiguous().T))
        assert not getattr(gru, name).is_contiguous()
    hx = torch.randn(20, 4, 1, device=device).permute(2, 1, 0)
    run_checked(gru, torch.randn(3, 4, 5, device=device), hx, "fp32", launched)


@pytest.mark.parametrize(
    "precision, bias, reset_after",
    [(precision, True, True) for precision in PRECISIONS] + [("fp32", False, True), ("fp16", True, False)],
)
def test_cell(kernel, precision, bias, reset_after, device, launched):
    dtype = set_precision(precision)
    options = {"bias": bias, "reset_after": reset_after, "device": device, "dtype": dtype}
    cell = triton_gru.GRUCell(7, 33, **options, backend=kernel).eval()
    as_gru = triton_gru.GRU(7, 33, **options)
    as_gru.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x, hx = torch.randn(5, 7, device=device).to(dtype), torch.randn(5, 33, device=device).to(dtype)
    for state in (hx, None):
        launched.clear()
        with torch.no_grad(), poison_memory():
            h = cell(x, state)
        assert launched.has_only(kernel)
        assert (set(launched) == {"whole_step"}) == (kernel == "step")
        assert len(launched) <= 2
        as_gru_state = None if state is None else state[None]
        exact = compute_exact(as_gru, x[None], as_gru_state)[1][0]
        assert_accurate(h, compute_baseline(as_gru, x[None], as_gru_state, precision)[1][0], exact, precision)
    with torch.no_grad():
        assert torch.equal(cell(x[0], hx[0]), cell(x[:1], hx[:1])[0])
