"""The input projection in every way that there is: the usual tile, others, and cuBLAS, with scans that read it."""

import random

import pytest
import torch

from triton_gru.call.bind import bind_gru
from triton_gru.kernels.projection import arrange_products
from triton_gru.launch import call_cache, execute
from triton_gru.launch.prepared import PreparedCall
from triton_gru.plan.config import CUBLAS
from triton_gru.plan.planner import KERNELS, choose
from triton_gru.plan.validity import unsupported_projection_reason
from triton_gru.tuning.space import projections

from ..calls import FACTORS, case_id, make_call, make_gru, run_checked, use_projection
from ..conftest import poison_memory
from ..oracle import PRECISIONS
from ..pairwise import pairwise

DIRECTIONS = ("forward", "reverse", "both")


@pytest.mark.parametrize(
    "case, directions",
    [(case, directions) for *case, directions in pairwise((20, 32), (1, 9), (2, 5), *FACTORS, DIRECTIONS)],
    ids=lambda value: value if isinstance(value, str) else case_id(*value),
)
def test_scans_read_what_cublas_has_multiplied(case, directions, device, launched, matmul, monkeypatch):
    """Called three times: bound and planned twice, then as it was prepared. Now and then in parts of its steps."""
    drawn = random.Random(torch.initial_seed())
    precision = case[3]
    matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    gru, x, hx = make_call(drawn.choice(KERNELS), *case, device, directions=directions)
    if drawn.random() < 0.5:
        monkeypatch.setattr(execute, "WORKSPACE_BYTES", 1 << 13)
    with use_projection(CUBLAS):
        first = run_checked(gru, x, hx, precision, launched)
        products = launched.count("arrange_products")
        assert 0 < products <= launched.scan_count
        assert launched.count("cublas") == products * (2 if directions == "both" else 1)
        for _ in range(2):
            again = run_checked(gru, x, hx, precision, launched)
            assert all(map(torch.equal, first, again))
        with torch.no_grad(), poison_memory():
            assert isinstance(call_cache.find_route(gru, x, hx), PreparedCall)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tile_has_the_same_results_as_another(precision, device):
    """Of the tiles a few in each run. The sums are the same, and may be of other parts first."""
    gru = make_gru(64, 20, precision, device, "grid")
    x = torch.randn(7, 9, 64, device=device).to(gru.weight_hh_l0.dtype)
    call = bind_gru(gru, x, None)
    plan = choose(call.problem, gru.plan(x).device, "grid")

    def gate_inputs(projection):
        with poison_memory():
            launch = next(
                execute.launches(call, plan.config, plan.device, *execute.allocate(call), projection=projection)
            )
            launch.start()
        return launch.args[launch.kernel.arg_names.index("gi")].float()

    usual = gate_inputs(None)
    expected = x.double() @ gru.weight_ih_l0.double().T + gru.bias_ih_l0.double()
    assert usual.isfinite().all()
    # What is not rounded in the products is in the result, and then a sum of 64 has its own error.
    unit = {"fp32": 2.0**-23, "tf32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}[precision]
    tiles = [each for each in projections(call.problem, plan.config, plan.device) if each != CUBLAS]
    assert len(tiles) > 3
    for tile in random.Random(torch.initial_seed()).sample(tiles, 2):
        assert (gate_inputs(tile) - usual).abs().max() <= 8 * unit * expected.abs().max(), tile


def test_rows_that_are_not_aligned_have_the_usual_tile(device):
    gru = make_gru(64, 20, "fp16", device, "block")
    x = torch.randn(3, 2, 65, device=device).half()[..., :64]
    call = bind_gru(gru, x, None)
    plan = gru.plan(x)
    tile = next(each for each in projections(call.problem, plan.config, plan.device) if each != CUBLAS)
    cuts = [
        next(execute.launches(call, plan.config, plan.device, *execute.allocate(call), projection=each)).constants[
            "cut"
        ]
        for each in (None, tile)
    ]
    assert cuts[0] == cuts[1]


def test_nan_and_inf_stay_in_their_row(device, launched):
    with use_projection(CUBLAS):
        gru = make_gru(5, 25, "fp16", device, "grid")
        x = torch.randn(3, 9, 5, device=device).half()
        with torch.no_grad():
            expected = gru(x)[0].clone()
            x[1, 4, 2], x[0, 7, 0] = float("nan"), float("inf")
            output = gru(x)[0]
        assert output[1:, 4].isnan().all() and "arrange_products" in launched
        others = [row for row in range(9) if row not in (4, 7)]
        assert torch.equal(output[:, others], expected[:, others])


def test_weights_that_change_are_multiplied_as_they_are(device):
    """Also of a call that is prepared, in place or by others in their stead."""
    with use_projection(CUBLAS):
        gru = make_gru(6, 32, "fp16", device, "block", bidirectional=True)
        x = torch.randn(4, 3, 6, device=device).half()
        with torch.no_grad():
            for change in (
                lambda: None,
                lambda: None,
                lambda: gru.weight_ih_l0_reverse.mul_(2),
                lambda: gru.weight_ih_l0.add_(1),
            ):
                change()
                kept, bound = gru(x)[0], execute.run(bind_gru(gru, x, None), gru.plan(x))[0]
                assert (kept - bound).abs().max() < 4e-3
            gru.weight_ih_l0 = torch.nn.Parameter(torch.randn_like(gru.weight_ih_l0))
            kept, bound = gru(x)[0], execute.run(bind_gru(gru, x, None), gru.plan(x))[0]
            assert (kept - bound).abs().max() < 4e-3


def test_cublas_is_refused_where_it_would_multiply_what_is_not_there(kernels_on_cpu):
    gru = make_gru(6, 32, "fp16", "cpu", "block")
    x = torch.randn(4, 3, 6).half()
    plan = gru.plan(x, None, torch.tensor([4, 2, 1]))
    assert "beyond their ends" in unsupported_projection_reason(CUBLAS, plan.config, plan.problem, plan.device)
    single = gru.plan(x[:1])
    step = choose(single.problem, single.device, "step")
    assert "one launch" in unsupported_projection_reason(CUBLAS, step.config, step.problem, step.device)
    assert unsupported_projection_reason(CUBLAS, single.config, single.problem, single.device) == ""
    assert arrange_products.arg_names[0] == "products"


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_workspace_holds_all_that_cublas_takes(batch_first, device, monkeypatch):
    """Its products, and copies of inputs that are not evenly apart: of many inputs these are the most."""
    monkeypatch.setattr(execute, "WORKSPACE_BYTES", 1 << 18)
    gru = make_gru(1000, 16, "fp16", device, "grid", batch_first=batch_first, bidirectional=True)
    x = torch.randn(*((4, 100) if batch_first else (100, 4)), 1000, device=device).half()
    call, plan = bind_gru(gru, x, None), gru.plan(x)
    made = list(execute.launches(call, plan.config, plan.device, *execute.allocate(call), projection=CUBLAS))
    largest = 0
    for first, second, arranging in zip(*(made[i::4] for i in range(3))):
        copied = [
            0 if each.x.reshape(-1, 1000).data_ptr() == each.x.data_ptr() else each.x.nbytes for each in (first, second)
        ]
        assert any(copied) == batch_first
        arguments = dict(zip(arranging.kernel.arg_names, arranging.args))
        largest = max(largest, max(copied) + arguments["products"].nbytes + arguments["gi"].nbytes)
    assert execute.WORKSPACE_BYTES / 2 < largest <= execute.WORKSPACE_BYTES
