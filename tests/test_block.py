"""The ``block`` kernel against float64, forced, with proof that it ran."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import triton_gru
from triton_gru import launch
from triton_gru.config import BlockConfig, block_config
from triton_gru.device import find

from .conftest import poisoned
from .oracle import PRECISIONS, check, exact, set_precision, torchs_own
from .pairwise import pairwise

LAYOUTS = ("time_first", "batch_first", "transposed", "every_other_feature", "odd_offset")


def make_input(layout, steps, batch, inputs, dtype, device):
    """An input of the module's shape, lying in memory as ``layout`` says."""
    first, second = (batch, steps) if layout == "batch_first" else (steps, batch)
    if layout == "transposed":
        return torch.randn(inputs, second, first, device=device).to(dtype).permute(2, 1, 0)
    if layout == "every_other_feature":
        return torch.randn(first, second, 2 * inputs, device=device).to(dtype)[..., ::2]
    if layout == "odd_offset":
        return torch.randn(first * second * inputs + 1, device=device).to(dtype)[1:].view(first, second, inputs)
    return torch.randn(first, second, inputs, device=device).to(dtype)


def make_gru(inputs, hidden, precision, device, **options):
    dtype = set_precision(precision)
    return triton_gru.GRU(inputs, hidden, device=device, dtype=dtype, backend="block", **options).eval()


def run_checked(gru, x, hx, precision, launched):
    """Runs the kernel on poisoned memory, asserts that it was the kernel and that it is right."""
    before = launched.scans
    with torch.no_grad(), poisoned():
        output, h_n = gru(x, hx)
    assert launched.scans > before
    exact_output, exact_h_n = exact(gru, x, hx)
    torch_output, torch_h_n = torchs_own(gru, x, hx, precision)
    check(output, torch_output, exact_output, precision)
    check(h_n, torch_h_n, exact_h_n, precision)
    return output, h_n


PAIRS = pairwise(
    (1, 3, 25, 64, 96, 128, 200),  # hidden size
    (1, 3, 17),  # batch
    (1, 2, 7),  # steps
    tuple(PRECISIONS),
    LAYOUTS,
    (True, False),  # bias
    (1, 2),  # layers
    (True, False),  # initial state given
    (1, 5, 40),  # input size
)


@pytest.mark.parametrize(
    "hidden, batch, steps, precision, layout, bias, layers, with_hx, inputs",
    PAIRS,
    ids=[
        f"H{h}-B{b}-T{t}-{p}-{layout}{'' if bias else '-no_bias'}-{layers}_layers{'-hx' if hx else ''}-I{i}"
        for h, b, t, p, layout, bias, layers, hx, i in PAIRS
    ],
)
def test_agrees_with_float64(hidden, batch, steps, precision, layout, bias, layers, with_hx, inputs, device, launched):
    batch_first = layout == "batch_first"
    gru = make_gru(inputs, hidden, precision, device, num_layers=layers, bias=bias, batch_first=batch_first)
    refusal = block_config(hidden, batch, *PRECISIONS[precision], find(gru.weight_ih_l0.device))
    x = make_input(layout, steps, batch, inputs, PRECISIONS[precision][0], device)
    hx = torch.randn(layers, batch, hidden, device=device).to(x.dtype) if with_hx else None
    if isinstance(refusal, str):  # on a GPU, the largest sizes
        with pytest.raises(RuntimeError, match="too large"):
            gru(x, hx)
        return
    output, _ = run_checked(gru, x, hx, precision, launched)
    assert output.is_contiguous()
    assert launched.scans == layers


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hidden=st.integers(1, 80),
    batch=st.integers(1, 20),
    steps=st.integers(1, 6),
    inputs=st.integers(1, 20),
    precision=st.sampled_from(list(PRECISIONS)),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_float64_on_any_shape(hidden, batch, steps, inputs, precision, layout, seed, device, launched):
    torch.manual_seed(seed)
    gru = make_gru(inputs, hidden, precision, device, batch_first=layout == "batch_first")
    x = make_input(layout, steps, batch, inputs, PRECISIONS[precision][0], device)
    run_checked(gru, x, None, precision, launched)


CONFIGS = [
    BlockConfig(units=32, tiles=1, batch=8, ahead=1, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=8, ahead=2, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=8, ahead=4, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=16, ahead=1, register_tiles=3, num_warps=2),
    BlockConfig(units=32, tiles=1, batch=8, ahead=1, register_tiles=0, num_warps=2),
    BlockConfig(units=16, tiles=2, batch=8, ahead=1, register_tiles=0, num_warps=1),
    BlockConfig(units=16, tiles=3, batch=8, ahead=1, register_tiles=6, num_warps=1),
    BlockConfig(units=16, tiles=2, batch=16, ahead=2, register_tiles=7, num_warps=1),
]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.units}x{c.tiles}-B{c.batch}-ahead{c.ahead}-{c.register_tiles}_in_registers"
)
def test_every_way_to_cut_gives_the_same(config, steps, device, launched, monkeypatch):
    monkeypatch.setattr("triton_gru.plan.block_config", lambda *args: config)
    triton_gru.plan.choose.cache_clear()
    try:
        gru = make_gru(5, 30, "fp16", device)
        x, hx = torch.randn(steps, 11, 5, device=device).half(), torch.randn(1, 11, 30, device=device).half()
        assert gru.plan(x, hx).config == config
        run_checked(gru, x, hx, "fp16", launched)
    finally:
        triton_gru.plan.choose.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_results_do_not_depend_on_the_chunks(precision, batch_first, device, launched, monkeypatch):
    gru = make_gru(6, 20, precision, device, num_layers=2, batch_first=batch_first)
    x = make_input("batch_first" if batch_first else "time_first", 11, 3, 6, PRECISIONS[precision][0], device)
    hx = torch.randn(2, 3, 20, device=device).to(x.dtype)
    whole, whole_h_n = run_checked(gru, x, hx, precision, launched)
    assert launched.scans == 2
    for workspace in (0, 5_000, 9_000):
        monkeypatch.setattr(launch, "WORKSPACE_BYTES", workspace)
        launched.clear()
        output, h_n = run_checked(gru, x, hx, precision, launched)
        assert launched.scans > 2
        assert torch.equal(output, whole)
        assert torch.equal(h_n, whole_h_n)


def test_workspace_does_not_grow_with_the_sequence(device):
    gru = make_gru(4, 16, "fp32", device, num_layers=2)
    largest = 0
    for steps in (10, 1_000_000):
        x = torch.empty(1, 8, 4, device=device).expand(steps, 8, 4)
        call = triton_gru.arguments.bind_gru(gru, x, None)
        plan = gru.plan(x)
        output, h_n = torch.empty(1, device=device), torch.empty(2, 8, 16, device=device)
        gi = next(launch.block_launches(call, plan.config, plan.device, output, h_n)).args[4]
        largest = max(largest, gi.nbytes)
        assert largest <= launch.WORKSPACE_BYTES
    assert largest > launch.WORKSPACE_BYTES / 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("where", ["x", "hx", "w_hh", "w_ih"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("hidden", [1, 16, 25])
def test_nan_and_inf_stay_in_their_row(precision, where, value, hidden, device, launched):
    torch.manual_seed(3)
    gru = make_gru(5, hidden, precision, device)
    x, hx = torch.randn(4, 9, 5, device=device).to(gru.weight_hh_l0.dtype), torch.randn(1, 9, hidden, device=device)
    hx = hx.to(x.dtype)
    planted = {"x": x[1, 2], "hx": hx[0, 8], "w_hh": gru.weight_hh_l0[hidden], "w_ih": gru.weight_ih_l0[-1]}[where]
    with torch.no_grad():
        planted[len(planted) // 2] = value
    output, _ = run_checked(gru, x, hx, precision, launched)
    if where in ("x", "hx"):
        clean = [row for row in range(9) if row != {"x": 2, "hx": 8}[where]]
        assert output[:, clean].isfinite().all()


@pytest.mark.parametrize("payload", [0x7F800001, 0x7FFFFFFF, 0x7FC00000, -1, -0x400001])
def test_every_nan_is_a_nan(payload, device, launched):
    """A NaN whose payload a conversion could round into an infinity, or a zero."""
    gru = make_gru(3, 16, "tf32", device)
    hx = torch.zeros(1, 2, 16, device=device)
    hx.view(torch.int32)[0, 1, 5] = payload
    x = torch.randn(3, 2, 3, device=device)
    output, h_n = run_checked(gru, x, hx, "tf32", launched)
    assert output[:, 1].isnan().all()
    assert h_n[0, 1].isnan().all()


def test_large_gates_saturate(device, launched):
    gru = make_gru(2, 16, "fp32", device)
    x = torch.tensor([1e4, -1e4, 3e38, -3e38], device=device)[:, None, None].expand(4, 3, 2)
    output, _ = run_checked(gru, x, None, "fp32", launched)
    assert output.isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_error_does_not_grow_over_a_long_sequence(precision, device, launched):
    torch.manual_seed(0)
    gru = make_gru(8, 24, precision, device)
    run_checked(gru, torch.randn(512, 2, 8, device=device).to(gru.weight_hh_l0.dtype), None, precision, launched)


def test_runs_are_bitwise_equal(device):
    gru = make_gru(9, 40, "bf16", device)
    x = torch.randn(6, 12, 9, device=device).bfloat16()
    with torch.no_grad():
        first, again = gru(x), gru(x)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_inputs_and_weights_are_left_as_they_were(device):
    gru = make_gru(9, 40, "fp16", device, num_layers=2)
    x, hx = torch.randn(6, 12, 9, device=device).half(), torch.randn(2, 12, 40, device=device).half()
    before = [t.clone() for t in (x, hx, *gru.parameters())]
    gru(x, hx)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, hx, *gru.parameters())))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rows_that_do_not_start_on_vectors(batch_first, precision, device, launched):
    """Inputs of vector size in rows that are one number longer: eight of them, but not each, start on one."""
    gru = make_gru(40, 16, precision, device, batch_first=batch_first)
    x = torch.randn(8, 8, 41, device=device).to(gru.weight_hh_l0.dtype)[..., :40]
    run_checked(gru, x, None, precision, launched)


def test_weights_that_do_not_lie_in_order(device, launched):
    gru = make_gru(5, 20, "fp32", device)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        weight = getattr(gru, name)
        setattr(gru, name, torch.nn.Parameter(weight.detach().T.contiguous().T))
        assert not getattr(gru, name).is_contiguous()
    hx = torch.randn(20, 4, 1, device=device).permute(2, 1, 0)
    run_checked(gru, torch.randn(3, 4, 5, device=device), hx, "fp32", launched)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_cell(precision, bias, device, launched):
    dtype = set_precision(precision)
    cell = triton_gru.GRUCell(7, 33, bias=bias, device=device, dtype=dtype, backend="block").eval()
    as_gru = triton_gru.GRU(7, 33, bias=bias, device=device, dtype=dtype)
    as_gru.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x, hx = torch.randn(5, 7, device=device).to(dtype), torch.randn(5, 33, device=device).to(dtype)
    for state in (hx, None):
        launched.clear()
        with torch.no_grad(), poisoned():
            h = cell(x, state)
        assert launched == ["input_projection", "block_scan"]
        as_gru_state = None if state is None else state[None]
        exactly = exact(as_gru, x[None], as_gru_state)[1][0]
        check(h, torchs_own(as_gru, x[None], as_gru_state, precision)[1][0], exactly, precision)
    with torch.no_grad():
        assert torch.equal(cell(x[0], hx[0]), cell(x, hx)[0])
