"""Who projects the inputs, our kernel or cuBLAS: as estimated, as measured, and what torch's settings allow."""

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

from .planted import H200, ONE_CONFIG, PROBLEM, PlantedBench, make_entry, make_result, plant_times

TILE = ProjectionConfig(128, 128, 64, 4, 3)
IEEE = dataclasses.replace(PROBLEM, dtype=torch.float32, precision="ieee", input_size=1024)


def change(problem=PROBLEM, **fields):
    return dataclasses.replace(problem, **fields)


def save(tables, *entries):
    path = store.save(list(entries), H200, tables)
    lookup.clear_table_cache()
    clear_plan_cache()
    return path


def measured(problem, winner, **ms):
    """An entry with these milliseconds. ``grid_cublas`` is ``grid+cublas``, ``grid_tile`` is ``grid`` with `TILE`."""
    results = {}
    for name, each in ms.items():
        kernel, _, projected = name.partition("_")
        found = make_result(kernel, None if kernel == "torch" else ONE_CONFIG, each)
        tile = TILE if projected == "tile" else None
        results[implementation_name(kernel, CUBLAS if projected == "cublas" else None)] = dataclasses.replace(
            found, tile=tile
        )
    return Entry(problem.key(), winner, results, 7, {}, environment(), "2026-01-02T03:04:05+00:00")


# As estimated.


def test_cublas_is_taken_where_it_is_estimated_to_be_clearly_faster(tables):
    """In fp32 without TF32 our own projection counts three times what a library takes, by a fit to an H200."""
    plan = choose(IEEE, H200)
    assert (plan.kernel, plan.projection, plan.implementation) == ("grid", CUBLAS, "grid+cublas")
    assert "inputs     projected by cuBLAS; with our kernel the call is estimated to take " in str(plan)
    for kernel in ("grid", "step"):
        assert choose(IEEE, H200, kernel).projection == CUBLAS
    ours, cublas = (estimate_call_cost(IEEE, plan.config, H200, True, projection) for projection in (None, CUBLAS))
    assert cublas.total < 0.9 * ours.total and cublas.launch > ours.launch
    # Where it gains less than a tenth, it is not worth a second kernel.
    little = change(IEEE, input_size=16)
    assert choose(little, H200).projection is None
    assert choose(PROBLEM, H200).projection is None, "as fast as ours in 16 bits, and laid out anew"
    assert set(dict(choose(PROBLEM, H200).rejection_reasons)) == {"block", "step", "torch"}


def test_multiprocessors_without_a_tile_cost_time():
    """Many inputs of few sequences make few tiles, each of many products. A library cuts the sum, too."""

    def cost(projection, **fields):
        problem = change(input_size=4096, **fields)
        return estimate_call_cost(problem, choose(problem, H200, "grid").config, H200, True, projection).projection

    assert cost(None, steps=16) == cost(None, steps=8), "as many tiles as there are multiprocessors take no longer"
    assert cost(CUBLAS, steps=16) == pytest.approx(2 * cost(CUBLAS, steps=8))
    assert cost(None, steps=16) > 2 * cost(CUBLAS, steps=16)
    assert cost(None, steps=1000) < 1.1 * cost(CUBLAS, steps=1000)
    smaller = ProjectionConfig(64, 32, 64, 4, 4)
    assert cost(smaller, steps=8) < cost(None, steps=8)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"layout": "lengths"}, "unequal lengths"),
        ({"layout": "packed"}, "unequal lengths"),
        ({"cublas_unsupported_reason": "it is on strike"}, "it is on strike"),
    ],
)
def test_where_cublas_cannot_be_ours_is_taken_and_the_plan_says_why(fields, words, tables):
    problem = change(PROBLEM, **fields)
    for backend in ("auto", "grid"):
        plan = choose(problem, H200, backend)
        assert plan.projection is None and words in str(plan)
    save(tables, measured(problem, "grid+cublas", grid=0.6, grid_cublas=0.5, torch=1.0))
    plan = choose(problem, H200)
    assert (plan.kernel, plan.projection, plan.config) == ("grid", None, ONE_CONFIG)
    assert plan.time.milliseconds == 0.6


# By torch's settings.


@pytest.mark.parametrize(
    "dtype, precision, setting, value, words",
    [
        (torch.float32, "tf32", "fp32_precision", "ieee", "in ieee, and in recurrent networks in tf32"),
        (torch.float32, "ieee", "fp32_precision", "tf32", "in tf32, and in recurrent networks in ieee"),
        (torch.float16, "ieee", "allow_fp16_accumulation", True, "allow_fp16_accumulation"),
    ],
)
def test_products_of_another_precision_are_not_taken(dtype, precision, setting, value, words, matmul):
    matmul.fp32_precision = precision
    assert cublas_unsupported_reason(dtype, precision) == ""
    setattr(matmul, setting, value)
    assert words in cublas_unsupported_reason(dtype, precision)
    assert cublas_unsupported_reason(torch.bfloat16, "ieee") == ""


def test_cublas_is_not_called_where_torch_would_refuse_it(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert cublas_unsupported_reason(torch.float16, "ieee") == ""
    torch.use_deterministic_algorithms(True)
    try:
        assert "use_deterministic_algorithms" in cublas_unsupported_reason(torch.float16, "ieee")
        monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        assert cublas_unsupported_reason(torch.float16, "ieee") == ""
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_setting_that_changes_between_calls_counts_at_once(kernels_on_cpu, launched, tables, matmul):
    gru = triton_gru.GRU(32, 32, backend="block").eval()
    set_precision("tf32")
    x = torch.randn(4, 3, 32)
    problem = gru.plan(x).problem
    config = heuristic("block", problem, H200)
    results = {"block": make_result("block", config, 0.6), "block+cublas": make_result("block", config, 0.5)}
    whole = make_entry(problem, "torch", torch=(None, 1.0))
    save(tables, dataclasses.replace(whole, winner="block+cublas", results=whole.results | results))
    with torch.no_grad():
        for precision in ("ieee", "tf32", "ieee"):
            matmul.fp32_precision = precision
            for _ in range(3):  # the last one as it is prepared
                launched.clear()
                gru(x)
                assert ("arrange_products" in launched) == (precision == "tf32")


# As measured.


def test_the_faster_by_measurement_is_taken(tables):
    save(tables, measured(PROBLEM, "grid+cublas", grid=0.6, grid_cublas=0.5, torch=1.0))
    for backend in ("auto", "grid"):
        plan = choose(PROBLEM, H200, backend)
        assert (plan.kernel, plan.config, plan.projection, plan.is_tuned) == ("grid", ONE_CONFIG, CUBLAS, True)
        assert "inputs     projected by cuBLAS; with our kernel the call was measured 600 us\n" in str(plan)
    assert choose(PROBLEM, H200).time.milliseconds == 0.5
    save(tables, measured(PROBLEM, "grid", grid=0.5, grid_cublas=0.6, torch=1.0))
    assert choose(PROBLEM, H200).projection is choose(PROBLEM, H200, "grid").projection is None


def test_a_tile_holds_where_a_verdict_does(tables):
    path = save(tables, measured(PROBLEM, "grid", grid_tile=0.5, torch=1.0))
    assert store.load(path).entries[0].results["grid"].tile == TILE
    for fields, holds in (
        ({}, True), ({"steps": 1000}, True), ({"steps": 50}, True), ({"input_size": 2048}, True),
        ({"steps": 20}, False), ({"input_size": 4096}, False), ({"num_layers": 2}, False),
    ):  # fmt: skip
        plan = choose(change(**fields), H200, "grid")
        assert plan.is_tuned and plan.projection == (TILE if holds else None), fields
    words = "our kernel, rows=128, cols=128, depth=64, num_warps=4, num_stages=3; with cuBLAS the call is estimated"
    assert f"inputs     projected by {words}" in str(choose(PROBLEM, H200, "grid"))


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": 48}, {"rows": 512}, {"cols": 8}, {"cols": 1 << 20}, {"depth": 1}, {"depth": 4096}, {"num_warps": 3},
        {"num_stages": 1000}, {"num_warps": 1}, {"rows": 256, "cols": 256},
    ],
    ids=str,
)  # fmt: skip
def test_a_tile_that_cannot_run_is_passed_over(fields, tables):
    """The usual one is taken: the file may come from anywhere."""
    bad = dataclasses.replace(TILE, **fields)
    assert unsupported_projection_reason(bad, ONE_CONFIG, PROBLEM, H200)
    whole = measured(PROBLEM, "grid", grid_tile=0.5, torch=1.0)
    save(
        tables,
        dataclasses.replace(
            whole, results=whole.results | {"grid": dataclasses.replace(whole.results["grid"], tile=bad)}
        ),
    )
    plan = choose(PROBLEM, H200)
    assert (plan.kernel, plan.projection, plan.config) == ("grid", None, ONE_CONFIG)


def test_a_tile_that_is_none_makes_no_entry(tables):
    path = save(tables, measured(PROBLEM, "grid", grid_tile=0.5, torch=1.0))
    whole = json.loads(path.read_text())
    for tile in ({"rows": 64}, 7, {**dataclasses.asdict(TILE), "more": 1}, {**dataclasses.asdict(TILE), "rows": -1}):
        whole["entries"][0]["results"]["grid"]["tile"] = tile
        path.write_text(json.dumps(whole))
        assert len(store.load(path).skipped) == 1, tile
    del whole["entries"][0]["results"]["grid"]["tile"]  # of an earlier version
    path.write_text(json.dumps(whole))
    assert store.load(path).entries[0].results["grid"].tile is None


def test_another_torch_makes_cublas_stale(tables):
    """It comes with torch. Our own projection does not."""
    before = change(reset_after=False)
    for winner, is_stale in (("grid+cublas", True), ("grid", False)):
        whole = measured(before, winner, **{winner.replace("+", "_"): 0.5})
        old = dataclasses.replace(whole, env={**environment(), "torch": "1.13.0"})
        assert bool(old.stale_reason) == is_stale


def test_names_of_implementations():
    for kernel in (*KERNELS, "torch"):
        assert (
            split_implementation(implementation_name(kernel, None))
            == (kernel, None)
            == split_implementation(implementation_name(kernel, TILE))
        )
        assert split_implementation(implementation_name(kernel, CUBLAS)) == (kernel, CUBLAS)


# By tuning.


@pytest.mark.parametrize("precision", ["fp16", "ieee"])
@pytest.mark.parametrize("by", [CUBLAS, "a tile"])
def test_tuning_finds_a_faster_projection_and_keeps_it(by, precision, tables):
    problem = PROBLEM if precision == "fp16" else IEEE
    config = heuristic("grid", problem, H200)
    if by != CUBLAS:
        by = [each for each in projections(problem, config, H200) if each != CUBLAS][-1]
    scan = Candidate("grid", config)

    def ms(candidate):
        if (candidate.kernel, candidate.config) != scan[:2]:
            return 1.0
        return 0.5 if candidate.projection == by else 0.7

    bench = PlantedBench(plant_times(ms))
    (found,) = triton_gru.tune([problem], bench=bench)
    winner = found.entry.results[found.entry.winner]
    assert found.entry.winner == implementation_name("grid", by)
    assert (winner.config, winner.tile) == (config, None if by == CUBLAS else by)
    assert winner.heuristic_ms == pytest.approx(
        0.5 if choose(problem, H200, use_tables=False).projection == by else 0.7
    )
    assert len(set(bench.compiled)) == len(bench.compiled) == found.entry.candidates
    lookup.clear_table_cache()
    clear_plan_cache()
    for backend in ("auto", "grid"):
        assert choose(problem, H200, backend).projection == by
    # Tuned again with times that differ by noise, it stays.
    again = PlantedBench(plant_times(lambda candidate: 0.5 if candidate.projection == by else 0.49))
    triton_gru.tune([problem], bench=again, remeasure=True)
    assert choose(problem, H200).projection == by


@pytest.mark.parametrize("slow, fast", [("eager", "graph"), ("graph", "eager")])
def test_cublas_has_to_be_as_fast_in_every_mode(slow, fast, tables):
    """It keeps the host for longer than a launch of ours."""
    config = heuristic("grid", PROBLEM, H200)
    times = {slow: 0.6, fast: 0.3}

    def ms(candidate, mode):
        if candidate == TORCH:
            return 1.0
        return times[mode] if candidate == ("grid", config, CUBLAS) else 0.5

    (found,) = triton_gru.tune([PROBLEM], bench=PlantedBench(ms))
    assert found.entry.winner == "grid" and "grid+cublas" in found.entry.results


def test_projections_are_tried_with_scans_in_reach_alone(tables):
    tried = {}
    for slow in (1.2, 1.4):  # times as long as the fastest scan
        bench = PlantedBench(
            plant_times(lambda candidate, slow=slow: 0.5 * (slow if candidate.kernel == "step" else 1))
        )
        triton_gru.tune([PROBLEM], bench=bench, remeasure=True)
        tried[slow] = {each.kernel for each in bench.compiled if each.projection}
    assert tried == {1.2: {"grid", "step"}, 1.4: {"grid"}}


def test_what_has_no_projection_is_tried_without(tables):
    single = change(steps=1)
    bench = PlantedBench(plant_times(lambda candidate: 0.5 if isinstance(candidate.config, StepConfig) else 0.9))
    triton_gru.tune([single], bench=bench)
    assert {each.projection for each in bench.compiled} == {None} and TORCH not in bench.compiled


def test_rows_that_are_not_aligned_have_no_other_tile():
    assert projections(change(input_size=13), ONE_CONFIG, H200) == [CUBLAS]
    assert len(projections(change(input_size=13, num_layers=2), ONE_CONFIG, H200)) > 1, "the layer above has 512 inputs"
    assert projections(change(input_size=13, layout="packed"), ONE_CONFIG, H200) == []


@pytest.mark.parametrize("hidden", [32, 512])
def test_the_usual_tile_is_not_tried_twice(hidden):
    problem = change(hidden_size=hidden, batch_size=1)
    config = heuristic("grid", problem, H200)
    usual = projection_config(hidden, problem.dtype, problem.precision, aligned=True)
    assert usual not in projections(problem, config, H200)
