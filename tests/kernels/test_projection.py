"""Tests of the input projection: by the default tile, by other tiles and by cuBLAS, with scans that read it."""

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
def test_scans_read_products_of_cublas(case, directions, device, launched, matmul, monkeypatch):
    """Check three calls: two are bound and planned, and the third is prepared. Half of the cases have chunks."""
    draw = random.Random(torch.initial_seed())
    _, _, _, precision, *_ = case
    matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    gru, x, hx = make_call(draw.choice(KERNELS), *case, device, directions=directions)
    if draw.random() < 0.5:
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
def test_every_tile_gives_the_same_gate_inputs(precision, device):
    """Compare two random tiles with the default tile. Tiles may add the parts of a sum in another order."""
    gru = make_gru(64, 20, precision, device, "grid")
    x = torch.randn(7, 9, 64, device=device).to(gru.weight_hh_l0.dtype)
    call = bind_gru(gru, x, None)
    plan = choose(call.problem, gru.plan(x).device, "grid")

    def compute_gate_inputs(projection):
        """Return the result of the first launch, which is the projection."""
        with poison_memory():
            launch = next(
                execute.launches(call, plan.config, plan.device, *execute.allocate(call), projection=projection)
            )
            launch.start()
        return launch.args[launch.kernel.arg_names.index("gi")].float()

    default = compute_gate_inputs(None)
    expected = x.double() @ gru.weight_ih_l0.double().T + gru.bias_ih_l0.double()
    assert default.isfinite().all()
    # Results are rounded to the dtype, and a sum of 64 terms has an error as well. `unit` is one unit in the last place
    # of 1.0.
    unit = {"fp32": 2.0**-23, "tf32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}[precision]
    choices = projections(call.problem, plan.config, plan.device)
    tiles = [projection for projection in choices if projection != CUBLAS]
    assert len(tiles) > 3
    for tile in random.Random(torch.initial_seed()).sample(tiles, 2):
        assert (compute_gate_inputs(tile) - default).abs().max() <= 8 * unit * expected.abs().max(), tile


def test_rows_that_are_not_aligned_get_the_default_tile(device):
    """Check that a chosen tile is ignored for rows of 64 features with a stride of 65."""
    gru = make_gru(64, 20, "fp16", device, "block")
    x = torch.randn(3, 2, 65, device=device).half()[..., :64]
    call = bind_gru(gru, x, None)
    plan = gru.plan(x)
    choices = projections(call.problem, plan.config, plan.device)
    tile = next(projection for projection in choices if projection != CUBLAS)

    def find_cut(projection):
        """Return the constants of the input projection."""
        launches = execute.launches(call, plan.config, plan.device, *execute.allocate(call), projection=projection)
        return next(launches).constants["cut"]

    assert find_cut(None) == find_cut(tile)


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


def test_cublas_multiplies_the_current_weights(device):
    """Change weights in place, and replace one, when the call is prepared."""
    with use_projection(CUBLAS):
        gru = make_gru(6, 32, "fp16", device, "block", bidirectional=True)
        x = torch.randn(4, 3, 6, device=device).half()
        with torch.no_grad():
            for change in (
                lambda: None,
                lambda: None,  # now the call is prepared
                lambda: gru.weight_ih_l0_reverse.mul_(2),
                lambda: gru.weight_ih_l0.add_(1),
            ):
                change()
                actual, expected = gru(x)[0], execute.run(bind_gru(gru, x, None), gru.plan(x))[0]
                assert (actual - expected).abs().max() < 4e-3
            gru.weight_ih_l0 = torch.nn.Parameter(torch.randn_like(gru.weight_ih_l0))
            actual, expected = gru(x)[0], execute.run(bind_gru(gru, x, None), gru.plan(x))[0]
            assert (actual - expected).abs().max() < 4e-3


def test_cublas_is_unsupported_for_lengths_and_for_single_steps_of_step(kernels_on_cpu):
    gru = make_gru(6, 32, "fp16", "cpu", "block")
    x = torch.randn(4, 3, 6).half()
    plan = gru.plan(x, None, torch.tensor([4, 2, 1]))
    assert "beyond their ends" in unsupported_projection_reason(CUBLAS, plan.config, plan.problem, plan.device)
    single = gru.plan(x[:1])
    step = choose(single.problem, single.device, "step")
    assert "a single step" in unsupported_projection_reason(CUBLAS, step.config, step.problem, step.device)
    assert unsupported_projection_reason(CUBLAS, single.config, single.problem, single.device) == ""
    assert arrange_products.arg_names[0] == "products"


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_workspace_bounds_all_memory_of_cublas(batch_first, device, monkeypatch):
    """Add up products, gate inputs, and copies of inputs without a uniform stride. Many features make copies large."""
    monkeypatch.setattr(execute, "WORKSPACE_BYTES", 1 << 18)
    gru = make_gru(1000, 16, "fp16", device, "grid", batch_first=batch_first, bidirectional=True)
    x = torch.randn(*((4, 100) if batch_first else (100, 4)), 1000, device=device).half()
    call, plan = bind_gru(gru, x, None), gru.plan(x)
    launches = list(execute.launches(call, plan.config, plan.device, *execute.allocate(call), projection=CUBLAS))
    largest = 0
    # A chunk has four launches: a product for each direction, their arrangement, and the scan.
    for first, second, arranging, _scan in zip(*(launches[i::4] for i in range(4))):
        copied = [
            0 if product.x.reshape(-1, 1000).data_ptr() == product.x.data_ptr() else product.x.nbytes
            for product in (first, second)
        ]
        assert any(copied) == batch_first
        arguments = dict(zip(arranging.kernel.arg_names, arranging.args))
        largest = max(largest, max(copied) + arguments["products"].nbytes + arguments["gi"].nbytes)
    assert execute.WORKSPACE_BYTES / 2 < largest <= execute.WORKSPACE_BYTES
