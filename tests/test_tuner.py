"""Tuning, driven by planted times over the real space of configurations, and once by itself."""

import contextlib
import dataclasses
import os
import random
import types
from collections import defaultdict

import pytest
import torch

import triton_gru
from triton_gru import cli
from triton_gru.plan.config import GridConfig
from triton_gru.plan.device import KNOWN_DEVICES, find_device
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.planner import KERNELS, choose
from triton_gru.plan.tables import lookup, revision, store
from triton_gru.tuning import bench, run, space, tuner
from triton_gru.tuning.space import TORCH, Candidate, candidates
from triton_gru.tuning.timing import quantiles
from triton_gru.tuning.verdict import is_clearly_faster

from .planted import H200, PROBLEM, PlantedBench, fill_disk, make_entry, plant_times

SMALL = dataclasses.replace(PROBLEM, hidden_size=64, input_size=64)


def tune(*problems, ms, **options):
    planted = PlantedBench(ms, **options)
    return triton_gru.tune(problems, bench=planted), planted


def faster(chosen, by=0.5):
    """All take as long as torch's own GRU does, one less."""
    return plant_times(lambda candidate: by if candidate == chosen else 1.0)


def test_the_fastest_is_found_kept_and_used(tables, capsys):
    fastest = next(
        each for each in candidates(PROBLEM, H200)
        if each.kernel == "grid" and each.config.tiles == 2 and each.config.rows == 8
    )  # fmt: skip
    before = choose(PROBLEM, H200)
    assert (before.kernel, before.source, before.is_tuned) == ("grid", "heuristic", False)
    assert before.config != fastest.config
    ((found,), planted) = tune(PROBLEM, ms=faster(fastest))
    assert planted.closed
    assert len(set(planted.compiled)) == len(planted.compiled) == found.entry.candidates > 10
    assert found.table_path == tables / "H200.json"
    assert found.entry.results["grid"].heuristic_ms == pytest.approx(1.0)
    for forgotten in (False, True):  # from this process, and from its file
        if forgotten:
            lookup.clear_table_cache()
            triton_gru.plan.planner.clear_plan_cache()
        after = choose(PROBLEM, H200)
        assert (after.kernel, after.config, after.is_tuned) == ("grid", fastest.config, True)
        assert ("H200.json" in after.source) == forgotten
        assert after.time.milliseconds == 0.5 and dict(after.rejection_reasons)["torch"] == "measured 1.00 ms"
    assert choose(PROBLEM, H200, "grid").config == fastest.config
    arguments = ["explain", "--hidden", "512", "--batch", "16", "--dtype", "fp16", "--device", "H200"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "measured   500 us in a CUDA graph (table /" in printed and "H200.json, of 20" in printed
    text = str(found)
    for words in (
        "winner     grid",
        "runner-up",
        "untuned",
        "baseline   nn.GRU",
        "in a CUDA graph 1.00 ms",
        "candidates",
    ):
        assert words in text


def test_where_torch_is_faster_auto_uses_it(tables):
    tune(SMALL, ms=plant_times(lambda candidate: 1.2))
    assert choose(SMALL, H200).kernel == "torch"
    assert choose(SMALL, H200, "block").is_tuned
    # What torch has no GRU for is still ours.
    assert choose(dataclasses.replace(SMALL, resets=True), H200).kernel in KERNELS


@pytest.mark.parametrize("slow, fast", [("eager", "graph"), ("graph", "eager")])
def test_ours_has_to_be_as_fast_in_every_mode(slow, fast, tables):
    times = {slow: 1.2, fast: 0.2}
    ((found,), _) = tune(SMALL, ms=lambda candidate, mode: 1.0 if candidate == TORCH else times[mode])
    assert found.entry.winner == "torch"


@pytest.mark.parametrize("seed", range(10))
def test_what_is_taken_is_not_slower_than_torch_nor_than_anything_else_of_ours(seed, tables):
    """Whatever the times, but for what counts as noise, tuned once and again with others."""
    drawn = random.Random(seed)
    for _ in range(3):
        times = defaultdict(lambda: drawn.uniform(0.4, 1.6))

        def ms(candidate, mode, times=times):
            return times[candidate, mode]

        triton_gru.tune([PROBLEM], bench=PlantedBench(ms), remeasure=True)
        plan = choose(PROBLEM, H200)
        taken = Candidate(plan.kernel, plan.config, plan.projection)
        for mode in ("eager", "graph"):
            assert 0.97 * ms(taken, mode) <= ms(TORCH, mode)
        if taken != TORCH:
            assert 0.97**2 * ms(taken, "graph") <= min(ms(each, "graph") for each in candidates(PROBLEM, H200))


def test_noise_does_not_change_a_table(tables):
    ours = Candidate("block", heuristic("block", SMALL, H200))
    for by in (0.98, 1.02):  # of what all others take
        ((found,), _) = tune(dataclasses.replace(SMALL, steps=200), ms=faster(ours, by))
        assert (found.entry.winner, found.entry.results["block"].config) == ours[:2]
        other = next(each for each in candidates(SMALL, H200) if each.kernel == "block" and each != ours)
        triton_gru.tune([SMALL], bench=PlantedBench(faster(other, by)), remeasure=True)
        assert choose(SMALL, H200).config == ours.config
    triton_gru.tune([SMALL], bench=PlantedBench(faster(other, 0.8)), remeasure=True)
    assert choose(SMALL, H200).config == other.config
    triton_gru.tune([SMALL], bench=PlantedBench(plant_times(lambda candidate: 1.04)), remeasure=True)
    assert choose(SMALL, H200).kernel == "torch"
    triton_gru.tune([SMALL], bench=PlantedBench(plant_times(lambda candidate: 0.98)), remeasure=True)
    assert choose(SMALL, H200).kernel == "torch", "not clearly faster than what is there"


@pytest.mark.parametrize(
    "a, b, expected",
    [([0.9], [1.0], True), ([0.98], [1.0], False), ([0.8, 0.9, 1.0], [1.0], False), ([0.5, 0.9, 1.0], [1.1], True)],
)
def test_faster_by_more_than_noise(a, b, expected):
    assert is_clearly_faster(quantiles(a), quantiles(b)) is expected


def test_what_fails_is_counted_and_said(tables):
    def out(candidate):
        if candidate.config.num_warps == 8 if candidate.kernel == "step" else candidate.kernel == "grid":
            return "it spills registers"
        return ""

    single = dataclasses.replace(PROBLEM, steps=1)
    ((found,), _) = tune(single, ms=plant_times(lambda candidate: 0.5), out=out)
    assert found.entry.failed["it spills registers"] > 10
    assert "it spills" in str(found)
    assert "grid" not in found.entry.results and found.entry.winner == "step"


def test_what_cannot_be_timed_is_passed_over(tables):
    """As for want of memory: what is judged is shorter than what is timed."""
    planted = PlantedBench(plant_times(lambda candidate: 0.5))
    timed = planted.time_candidates
    planted.time_candidates = lambda candidates, mode, *more: timed(
        [each for each in candidates if each.kernel != "grid" and (each.kernel != "torch" or mode == "eager")],
        mode,
        *more,
    )
    (found,) = triton_gru.tune([PROBLEM], bench=planted)
    assert set(found.entry.results) == {"step", "step+cublas"} and found.entry.failed["it could not be timed"] > 10
    planted.time_candidates = lambda candidates, *more: {}
    assert triton_gru.tune([SMALL], bench=planted) == []


def test_nothing_runs(tables):
    said = []
    planted = PlantedBench(plant_times(lambda candidate: 0.5), out=lambda candidate: "no compiler")
    before = dataclasses.replace(PROBLEM, reset_after=False)
    assert triton_gru.tune([before], bench=planted, report=said.append) == []
    assert any("nothing runs" in str(line) and "no compiler" in str(line) for line in said)
    assert not list(tables.iterdir())
    ((found,), _) = tune(PROBLEM, ms=plant_times(lambda candidate: 0.5), out=lambda candidate: "no compiler")
    assert found.entry.winner == "torch"


def test_an_interrupted_run_goes_on_where_it_was(tables):
    three = [dataclasses.replace(PROBLEM, batch_size=batch) for batch in (1, 4, 16)]
    planted = PlantedBench(plant_times(lambda candidate: 0.5), stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        triton_gru.tune(three, bench=planted)
    assert planted.closed
    lookup.clear_table_cache()  # another process
    found, planted = tune(*three, ms=plant_times(lambda candidate: 0.5))
    assert [each.is_from_table for each in found] == [True, False, False]
    assert [each.batch_size for each in planted.problems] == [4, 16]
    _, planted = tune(*three, ms=plant_times(lambda candidate: 0.5))
    assert planted.problems == []


def test_what_could_not_be_written_is_written_by_the_next_run(tables, monkeypatch):
    with monkeypatch.context() as full:
        fill_disk(full, "fsync")
        with pytest.warns(UserWarning, match="cannot be kept: .*No space left on device"):
            (found,), _ = tune(PROBLEM, ms=plant_times(lambda candidate: 0.5))
    assert found.table_path is None and not (tables / "H200.json").exists()
    (found,), planted = tune(PROBLEM, ms=plant_times(lambda candidate: 0.5))
    assert found.is_from_table and found.table_path == tables / "H200.json" and not planted.problems
    assert [each.key for each in store.load(found.table_path).entries] == [PROBLEM.key()]


def test_what_another_tuner_has_measured_meanwhile_is_not_measured_again(tables):
    """Two that have the same list share it: each shape is measured by who comes to it first."""
    three = [dataclasses.replace(PROBLEM, batch_size=batch) for batch in (1, 4, 16)]
    planted, said = PlantedBench(plant_times(lambda candidate: 0.5)), []
    opened = planted.open_problem

    def with_another_at_work(problem):
        if problem == three[0] and len(planted.problems) == 0:  # the other one begins at the end
            theirs = make_entry(three[2], "grid", grid=(heuristic("grid", three[2], H200), 0.25), torch=(None, 1.0))
            store.save([theirs], H200, tables)
        return opened(problem)

    planted.open_problem = with_another_at_work
    found = triton_gru.tune(three, bench=planted, report=said.append)
    assert [each.batch_size for each in planted.problems] == [1, 4]
    assert [each.is_from_table for each in found] == [False, False, True]
    assert any("B<=16 T=100: another tuner has measured it meanwhile" in str(line) for line in said)
    assert choose(three[2], H200).time.milliseconds == 0.25
    assert [each.ms for each in store.load(tables / "H200.json").entries] == [0.25, 0.5, 0.5]
    planted.problems.clear()
    triton_gru.tune(three, bench=planted, remeasure=True)
    assert len(planted.problems) == 3


def test_a_budget_leaves_out_candidates_then_problems(tables):
    others = [dataclasses.replace(PROBLEM, batch_size=batch) for batch in (1, 4)]
    planted = PlantedBench(plant_times(lambda candidate: 0.5))
    (found,) = triton_gru.tune([PROBLEM, *others], bench=planted, budget=0)
    first = {Candidate(kernel, heuristic(kernel, PROBLEM, H200)) for kernel in ("grid", "step")}
    assert set(planted.compiled) == first, "what is there now is measured whatever the time"
    assert found.entry.failed == {"not tried: the time was over": found.entry.candidates - 2}


def test_the_time_for_running_candidates_is_bounded_too(tables, monkeypatch):
    now = [0.0]
    for module in (tuner, run):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    planted = PlantedBench(plant_times(lambda candidate: 0.5))
    judged = []

    def judge(candidate):
        now[0] += 1
        judged.append(candidate)
        return ""

    planted.judge = judge
    (found,) = triton_gru.tune([PROBLEM], bench=planted, budget=10)
    first = {TORCH, *(Candidate(kernel, heuristic(kernel, PROBLEM, H200)) for kernel in ("grid", "step"))}
    assert set(judged[:3]) == first and len(judged) == 11
    assert found.entry.failed == {"not tried: the time was over": found.entry.candidates - 10}
    assert found.entry.winner == "grid"


def test_one_measurement_for_what_is_not_told_apart(tables):
    same = [dataclasses.replace(PROBLEM, batch_size=batch) for batch in (9, 16, 12)]
    same += [dataclasses.replace(PROBLEM, resets=True), dataclasses.replace(PROBLEM, reverse=True)]
    _, planted = tune(*same, ms=plant_times(lambda candidate: 0.5))
    assert [each.batch_size for each in planted.problems] == [16]
    configs = {choose(dataclasses.replace(PROBLEM, batch_size=batch), H200).config for batch in range(9, 17)}
    assert len(configs) == 1
    assert choose(dataclasses.replace(PROBLEM, batch_size=17), H200).source == "heuristic"


def test_what_is_stale_is_measured_again_and_counts_less(tables, monkeypatch):
    monkeypatch.setitem(revision.environment(), "triton", "3.6.0")
    tune(SMALL, ms=plant_times(lambda candidate: 1.2))
    monkeypatch.setitem(revision.environment(), "triton", "9.9.9")
    lookup.clear_table_cache()
    triton_gru.plan.planner.clear_plan_cache()
    plan = choose(SMALL, H200)
    assert plan.kernel == "torch" and "stale: made with triton 3.6, this is 9.9" in plan.source
    found, planted = tune(SMALL, ms=plant_times(lambda candidate: 0.5))
    assert not found[0].is_from_table and len(planted.problems) == 1
    assert choose(SMALL, H200).kernel == "block"


def test_it_refuses_a_problem_with_nothing_to_time(tables):
    for name in ("batch_size", "input_size", "hidden_size"):
        bench = PlantedBench(plant_times(lambda candidate: 2.0))
        with pytest.raises(ValueError, match="no size of a problem to be tuned may be 0, got T="):
            triton_gru.tune([PROBLEM, dataclasses.replace(PROBLEM, **{name: 0})], bench=bench)
        assert not bench.compiled


def test_it_refuses_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA graph is being captured"):
        triton_gru.tune([PROBLEM], bench=PlantedBench(None))


def test_it_refuses_where_no_kernel_runs(monkeypatch, capsys):
    monkeypatch.setattr(bench, "find_device", lambda device: None)
    with pytest.raises(RuntimeError, match="no kernel runs on cpu"):
        triton_gru.tune([PROBLEM], device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="there is no GPU to tune for"):
        triton_gru.tune([PROBLEM])


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda d: d.name)
@pytest.mark.parametrize("precision", [(torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")])
def test_the_space_holds_what_can_run_and_the_heuristic(device, precision):
    dtype, fp32 = precision
    for hidden, batch, steps in ((64, 4, 100), (192, 1, 100), (512, 64, 100), (2048, 1, 100), (4096, 4, 1)):
        problem = dataclasses.replace(
            PROBLEM, hidden_size=hidden, batch_size=batch, steps=steps, dtype=dtype, precision=fp32
        )
        found = candidates(problem, device)
        assert len(found) == len(set(found))
        for kernel in KERNELS:
            config = heuristic(kernel, problem, device)
            assert isinstance(config, str) or Candidate(kernel, config) in found[:3]
        for _, config, projection in found:
            assert projection is None
            assert space.unsupported_config_reason(config, problem, device) == ""
            if isinstance(config, GridConfig):
                assert config.programs * config.copies * config.directions <= device.sms


def test_tuning_by_itself(device, tables, launched, monkeypatch):
    """Compiled, judged and timed for real, on a few candidates of each kernel."""
    monkeypatch.setattr("triton_gru.tuning.timing.WARMUP", 1)
    monkeypatch.setattr(run, "_SCREENING_ROUNDS", 1)
    monkeypatch.setattr(run, "_FINAL_ROUNDS", 3)
    monkeypatch.setattr("triton_gru.tuning.timing.LEAST_ROUNDS", 1)

    def few(problem, described):
        found = candidates(problem, described)
        return [each for kernel in KERNELS for each in [c for c in found if c.kernel == kernel][:2]]

    monkeypatch.setattr(run, "candidates", few)
    problem = dataclasses.replace(PROBLEM, hidden_size=16, input_size=5, batch_size=3, steps=2)
    (found,) = triton_gru.tune([problem], device=device)
    assert found.entry.failed == {}
    with_cublas = {name for name in found.entry.results if name.endswith("+cublas")}
    assert with_cublas and set(found.entry.results) - with_cublas == {"torch", *KERNELS}
    assert {"block_scan", "grid_scan", "step_scan", "cublas", "arrange_products"} <= set(launched)
    here = find_device(torch.device(device, 0) if device == "cuda" else torch.device(device))
    assert found.table_path == tables / store.file_name(here)
    assert choose(problem, here, "block").is_tuned
    right = triton_gru.launch.execute.run

    def run_wrong(call, plan):
        output, h_n = right(call, plan)
        if plan.kernel == "step":
            output += 1
        elif plan.kernel == "block":
            h_n[-1, -1, -1] = torch.nan  # beside an output that is right
        return output, h_n

    monkeypatch.setattr(triton_gru.launch.execute, "run", run_wrong)
    (found,) = triton_gru.tune([problem], device=device, remeasure=True)
    assert {"torch", "grid"} <= set(found.entry.results) <= {"torch", "grid", "grid+cublas"}
    assert set(found.entry.failed) == {"wrong: further from float64 than it may be"}


def test_candidates_are_compiled_in_processes_of_their_own(tmp_path, monkeypatch):
    """For a GPU that is not there; what the processes survive is tested in test_compile_pool.py."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # one process at a time: each imports torch
    problem = dataclasses.replace(PROBLEM, hidden_size=16, input_size=16)
    block = Candidate("block", heuristic("block", problem, H200))
    never = Candidate("block", dataclasses.replace(block.config, num_warps=3))
    monkeypatch.setattr(bench, "find_device", lambda device: H200)
    with contextlib.closing(bench.Bench(torch.device("cuda"))) as of_h200:
        found = dict(of_h200.compile(problem, [block, never], 120))
        assert found[block] == "" and found[never]
        assert any(tmp_path.rglob("*.cubin"))
        assert dict(of_h200.compile(problem, [block], 0)) == {}
