"""Choice of the input projection, our kernel or cuBLAS: estimates, measurements, and torch's settings."""

import dataclasses
import json
import os

import pytest
import torch

import triton_gru
from triton_gru.accuracy import set_precision
from triton_gru.call.torch_state import cublas_unsupported_reason
from triton_gru.plan.config import (
    CUBLAS,
    ProjectionConfig,
    StepConfig,
    implementation_name,
    projection_config,
    split_implementation,
)
from triton_gru.plan.cost import estimate_call_cost
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.planner import KERNELS, choose, clear_plan_cache
from triton_gru.plan.tables import lookup, store
from triton_gru.plan.tables.entries import Entry
from triton_gru.plan.tables.revision import environment
from triton_gru.plan.validity import unsupported_projection_reason
from triton_gru.tuning.space import TORCH, Candidate, projections

from .planted import H200, ONE_CONFIG, PROBLEM, PlantedBench, change_problem, make_entry, make_result, plant_times

TILE = ProjectionConfig(rows=128, cols=128, depth=64, num_warps=4, num_stages=3)
IEEE = dataclasses.replace(PROBLEM, dtype=torch.float32, precision="ieee", input_size=1024)


def save_table(tables, *entries):
    """Save entries as the table of an H200. Clear the caches. Return the path."""
    path = store.save(list(entries), H200, tables)
    lookup.clear_table_cache()
    clear_plan_cache()
    return path


def make_measured_entry(problem, winner, **ms):
    """Return an entry with the milliseconds of each keyword: an implementation whose "+" is "_".

    ``grid_cublas`` is ``grid+cublas``. ``grid_tile`` is ``grid`` with the projection `TILE`.
    """
    results = {}
    for name, milliseconds in ms.items():
        kernel, _, projection = name.partition("_")
        result = make_result(kernel, None if kernel == "torch" else ONE_CONFIG, milliseconds)
        tile = TILE if projection == "tile" else None
        results[implementation_name(kernel, CUBLAS if projection == "cublas" else None)] = dataclasses.replace(
            result, tile=tile
        )
    return Entry(problem.key(), winner, results, 7, {}, environment(), "2026-01-02T03:04:05+00:00")


# Estimates.


def test_cublas_is_taken_if_estimated_to_be_clearly_faster(tables):
    """In fp32 without TF32 our projection is estimated to take three times a library's time, by a fit to an H200."""
    plan = choose(IEEE, H200)
    assert (plan.kernel, plan.projection, plan.implementation) == ("grid", CUBLAS, "grid+cublas")
    assert "inputs     projected by cuBLAS; with our kernel the call is estimated to take " in str(plan)
    for kernel in ("grid", "step"):
        assert choose(IEEE, H200, kernel).projection == CUBLAS
    ours, cublas = (estimate_call_cost(IEEE, plan.config, H200, True, projection) for projection in (None, CUBLAS))
    assert cublas.total < 0.9 * ours.total and cublas.launch > ours.launch
    # A gain below a tenth is not worth a second kernel.
    narrow = change_problem(IEEE, input_size=16)
    assert choose(narrow, H200).projection is None
    assert choose(PROBLEM, H200).projection is None, "as fast as ours in 16 bits, and its products must be rearranged"
    assert set(dict(choose(PROBLEM, H200).rejection_reasons)) == {"block", "step", "torch"}


def test_multiprocessors_without_a_tile_cost_time():
    """Few rows of many inputs make few tiles, each with a long sum. A library splits the sum too."""

    def estimate_projection_cost(projection, **fields):
        problem = change_problem(input_size=4096, **fields)
        return estimate_call_cost(problem, choose(problem, H200, "grid").config, H200, True, projection).projection

    assert estimate_projection_cost(None, steps=16) == estimate_projection_cost(None, steps=8), (
        "as many tiles as there are multiprocessors take no longer"
    )
    assert estimate_projection_cost(CUBLAS, steps=16) == pytest.approx(2 * estimate_projection_cost(CUBLAS, steps=8))
    assert estimate_projection_cost(None, steps=16) > 2 * estimate_projection_cost(CUBLAS, steps=16)
    assert estimate_projection_cost(None, steps=1000) < 1.1 * estimate_projection_cost(CUBLAS, steps=1000)
    smaller = ProjectionConfig(rows=64, cols=32, depth=64, num_warps=4, num_stages=4)
    assert estimate_projection_cost(smaller, steps=8) < estimate_projection_cost(None, steps=8)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"layout": "lengths"}, "unequal lengths"),
        ({"layout": "packed"}, "unequal lengths"),
        ({"cublas_unsupported_reason": "it is on strike"}, "it is on strike"),
    ],
)
def test_our_projection_serves_if_cublas_cannot_and_the_plan_tells_why(fields, reason, tables):
    problem = change_problem(PROBLEM, **fields)
    for backend in ("auto", "grid"):
        plan = choose(problem, H200, backend)
        assert plan.projection is None and reason in str(plan)
    save_table(tables, make_measured_entry(problem, "grid+cublas", grid=0.6, grid_cublas=0.5, torch=1.0))
    plan = choose(problem, H200)
    assert (plan.kernel, plan.projection, plan.config) == ("grid", None, ONE_CONFIG)
    assert plan.time.milliseconds == 0.6


# Settings of torch.


@pytest.mark.parametrize(
    "dtype, precision, setting, value, reason",
    [
        (torch.float32, "tf32", "fp32_precision", "ieee", "in ieee, and in recurrent networks in tf32"),
        (torch.float32, "ieee", "fp32_precision", "tf32", "in tf32, and in recurrent networks in ieee"),
        (torch.float16, "ieee", "allow_fp16_accumulation", True, "allow_fp16_accumulation"),
    ],
)
def test_cublas_of_another_precision_is_refused(dtype, precision, setting, value, reason, matmul):
    matmul.fp32_precision = precision
    assert cublas_unsupported_reason(dtype, precision) == ""
    setattr(matmul, setting, value)
    assert reason in cublas_unsupported_reason(dtype, precision)
    assert cublas_unsupported_reason(torch.bfloat16, "ieee") == ""


def test_cublas_is_refused_if_torch_would_raise(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert cublas_unsupported_reason(torch.float16, "ieee") == ""
    torch.use_deterministic_algorithms(True)
    try:
        assert "use_deterministic_algorithms" in cublas_unsupported_reason(torch.float16, "ieee")
        monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        assert cublas_unsupported_reason(torch.float16, "ieee") == ""
    finally:
        torch.use_deterministic_algorithms(False)


def test_changed_matmul_precision_applies_to_the_next_call(kernels_on_cpu, launched, tables, matmul):
    """Check that cuBLAS projects the inputs of a GRU in TF32 only while torch multiplies matrices in TF32, too."""
    gru = triton_gru.GRU(32, 32, backend="block").eval()
    set_precision("tf32")
    x = torch.randn(4, 3, 32)
    problem = gru.plan(x).problem
    config = heuristic("block", problem, H200)
    results = {"block": make_result("block", config, 0.6), "block+cublas": make_result("block", config, 0.5)}
    entry = make_entry(problem, "torch", torch=(None, 1.0))
    save_table(tables, dataclasses.replace(entry, winner="block+cublas", results=entry.results | results))
    with torch.no_grad():
        for precision in ("ieee", "tf32", "ieee"):
            matmul.fp32_precision = precision
            for _ in range(3):  # the third call is prepared
                launched.clear()
                gru(x)
                used_cublas = "arrange_products" in launched  # this kernel arranges cuBLAS's product
                assert used_cublas == (precision == "tf32")


# Measurements.


def test_faster_measured_projection_is_taken(tables):
    save_table(tables, make_measured_entry(PROBLEM, "grid+cublas", grid=0.6, grid_cublas=0.5, torch=1.0))
    for backend in ("auto", "grid"):
        plan = choose(PROBLEM, H200, backend)
        assert (plan.kernel, plan.config, plan.projection, plan.is_tuned) == ("grid", ONE_CONFIG, CUBLAS, True)
        assert "inputs     projected by cuBLAS; with our kernel the call took 600 us\n" in str(plan)
    assert choose(PROBLEM, H200).time.milliseconds == 0.5
    save_table(tables, make_measured_entry(PROBLEM, "grid", grid=0.5, grid_cublas=0.6, torch=1.0))
    assert choose(PROBLEM, H200).projection is choose(PROBLEM, H200, "grid").projection is None


def test_measured_tile_holds_for_the_problems_of_its_verdict(tables):
    path = save_table(tables, make_measured_entry(PROBLEM, "grid", grid_tile=0.5, torch=1.0))
    assert store.load(path).entries[0].results["grid"].tile == TILE
    for fields, holds in (
        ({}, True), ({"steps": 1000}, True), ({"steps": 50}, True), ({"input_size": 2048}, True),
        ({"steps": 20}, False), ({"input_size": 4096}, False), ({"num_layers": 2}, False),
    ):  # fmt: skip
        plan = choose(change_problem(**fields), H200, "grid")
        assert plan.is_tuned and plan.projection == (TILE if holds else None), fields
    text = "our kernel, rows=128, cols=128, depth=64, num_warps=4, num_stages=3; with cuBLAS the call is estimated"
    assert f"inputs     projected by {text}" in str(choose(PROBLEM, H200, "grid"))


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": 48}, {"rows": 512}, {"cols": 8}, {"cols": 1 << 20}, {"depth": 1}, {"depth": 4096}, {"num_warps": 3},
        {"num_stages": 1000}, {"num_warps": 1}, {"rows": 256, "cols": 256},
    ],
    ids=str,
)  # fmt: skip
def test_tile_that_cannot_run_is_ignored(fields, tables):
    """The plan takes the usual tile. A table may come from anywhere, so any tile is possible."""
    bad_tile = dataclasses.replace(TILE, **fields)
    assert unsupported_projection_reason(bad_tile, ONE_CONFIG, PROBLEM, H200)
    entry = make_measured_entry(PROBLEM, "grid", grid_tile=0.5, torch=1.0)
    save_table(
        tables,
        dataclasses.replace(
            entry, results=entry.results | {"grid": dataclasses.replace(entry.results["grid"], tile=bad_tile)}
        ),
    )
    plan = choose(PROBLEM, H200)
    assert (plan.kernel, plan.projection, plan.config) == ("grid", None, ONE_CONFIG)


def test_entry_with_an_invalid_tile_is_skipped(tables):
    path = save_table(tables, make_measured_entry(PROBLEM, "grid", grid_tile=0.5, torch=1.0))
    table = json.loads(path.read_text())
    for tile in ({"rows": 64}, 7, {**dataclasses.asdict(TILE), "more": 1}, {**dataclasses.asdict(TILE), "rows": -1}):
        table["entries"][0]["results"]["grid"]["tile"] = tile
        path.write_text(json.dumps(table))
        assert len(store.load(path).skipped) == 1, tile
    del table["entries"][0]["results"]["grid"]["tile"]  # as an earlier version wrote it
    path.write_text(json.dumps(table))
    assert store.load(path).entries[0].results["grid"].tile is None


def test_another_torch_makes_cublas_entries_stale(tables):
    """cuBLAS comes with torch, and our projection does not."""
    problem = change_problem(reset_after=False)
    for winner, is_stale in (("grid+cublas", True), ("grid", False)):
        entry = make_measured_entry(problem, winner, **{winner.replace("+", "_"): 0.5})
        old_entry = dataclasses.replace(entry, env={**environment(), "torch": "1.13.0"})
        assert bool(old_entry.stale_reason) == is_stale


def test_names_of_implementations_are_split_again():
    for kernel in (*KERNELS, "torch"):
        assert (
            split_implementation(implementation_name(kernel, None))
            == (kernel, None)
            == split_implementation(implementation_name(kernel, TILE))
        )
        assert split_implementation(implementation_name(kernel, CUBLAS)) == (kernel, CUBLAS)


# Tuning.


@pytest.mark.parametrize("precision", ["fp16", "ieee"])
@pytest.mark.parametrize("fastest", [CUBLAS, "a tile"])
def test_tuning_finds_a_faster_projection_and_keeps_it(fastest, precision, tables):
    problem = PROBLEM if precision == "fp16" else IEEE
    config = heuristic("grid", problem, H200)
    if fastest != CUBLAS:
        fastest = [tile for tile in projections(problem, config, H200) if tile != CUBLAS][-1]
    scan = Candidate("grid", config)

    def get_ms(candidate):
        if (candidate.kernel, candidate.config) != scan[:2]:
            return 1.0
        return 0.5 if candidate.projection == fastest else 0.7

    bench = PlantedBench(plant_times(get_ms))
    (result,) = triton_gru.tune([problem], bench=bench)
    winner = result.entry.results[result.entry.winner]
    assert result.entry.winner == implementation_name("grid", fastest)
    assert (winner.config, winner.tile) == (config, None if fastest == CUBLAS else fastest)
    assert winner.heuristic_ms == pytest.approx(
        0.5 if choose(problem, H200, use_tables=False).projection == fastest else 0.7
    )
    assert len(set(bench.compiled)) == len(bench.compiled) == result.entry.candidates
    lookup.clear_table_cache()
    clear_plan_cache()
    for backend in ("auto", "grid"):
        assert choose(problem, H200, backend).projection == fastest
    # Tuning again with times that differ by noise keeps the projection.
    noisy_bench = PlantedBench(plant_times(lambda candidate: 0.5 if candidate.projection == fastest else 0.49))
    triton_gru.tune([problem], bench=noisy_bench, remeasure=True)
    assert choose(problem, H200).projection == fastest


@pytest.mark.parametrize("slow, fast", [("eager", "graph"), ("graph", "eager")])
def test_cublas_must_be_as_fast_in_every_mode(slow, fast, tables):
    """A call of cuBLAS occupies the host for longer than a launch of ours."""
    config = heuristic("grid", PROBLEM, H200)
    times = {slow: 0.6, fast: 0.3}

    def get_ms(candidate, mode):
        if candidate == TORCH:
            return 1.0
        return times[mode] if candidate == ("grid", config, CUBLAS) else 0.5

    (tuned,) = triton_gru.tune([PROBLEM], bench=PlantedBench(get_ms))
    assert tuned.entry.winner == "grid" and "grid+cublas" in tuned.entry.results


def test_projections_are_tried_only_with_scans_near_the_fastest(tables):
    tried_kernels = {}
    for slow in (1.2, 1.4):  # times as long as the fastest scan
        bench = PlantedBench(
            plant_times(lambda candidate, slow=slow: 0.5 * (slow if candidate.kernel == "step" else 1))
        )
        triton_gru.tune([PROBLEM], bench=bench, remeasure=True)
        tried_kernels[slow] = {candidate.kernel for candidate in bench.compiled if candidate.projection}
    assert tried_kernels == {1.2: {"grid", "step"}, 1.4: {"grid"}}


def test_single_step_is_tried_without_projections(tables):
    single = change_problem(steps=1)
    bench = PlantedBench(plant_times(lambda candidate: 0.5 if isinstance(candidate.config, StepConfig) else 0.9))
    triton_gru.tune([single], bench=bench)
    assert {candidate.projection for candidate in bench.compiled} == {None} and TORCH not in bench.compiled


def test_only_cublas_is_tried_with_unaligned_inputs():
    assert projections(change_problem(input_size=13), ONE_CONFIG, H200) == [CUBLAS]
    # The second layer has 512 inputs, which are aligned.
    assert len(projections(change_problem(input_size=13, num_layers=2), ONE_CONFIG, H200)) > 1
    # cuBLAS serves dense sequences only.
    assert projections(change_problem(input_size=13, layout="packed"), ONE_CONFIG, H200) == []


@pytest.mark.parametrize("hidden", [32, 512])
def test_usual_tile_is_not_tried_twice(hidden):
    problem = change_problem(hidden_size=hidden, batch_size=1)
    config = heuristic("grid", problem, H200)
    usual_tile = projection_config(hidden, problem.dtype, problem.precision, aligned=True)
    assert usual_tile not in projections(problem, config, H200)
