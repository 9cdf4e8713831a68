"""Tuning with planted times over the real space of configurations, and once with real times."""

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
    """Tune ``problems`` with planted times. Return the results and the bench, which gets the ``options``."""
    planted = PlantedBench(ms, **options)
    return triton_gru.tune(problems, bench=planted), planted


def plant_one_time(chosen, ms=0.5):
    """Return times of 1 for `nn.GRU` and all candidates. Exception: ``chosen`` takes ``ms``."""
    return plant_times(lambda candidate: ms if candidate == chosen else 1.0)


def test_fastest_is_found_kept_and_used(tables, capsys):
    fastest = next(
        candidate for candidate in candidates(PROBLEM, H200)
        if candidate.kernel == "grid" and candidate.config.tiles == 2 and candidate.config.rows == 8
    )  # fmt: skip
    untuned_plan = choose(PROBLEM, H200)
    assert (untuned_plan.kernel, untuned_plan.source, untuned_plan.is_tuned) == ("grid", "heuristic", False)
    assert untuned_plan.config != fastest.config
    ((tuned,), planted) = tune(PROBLEM, ms=plant_one_time(fastest))
    assert planted.closed
    assert len(set(planted.compiled)) == len(planted.compiled) == tuned.entry.candidates > 10
    assert tuned.table_path == tables / "H200.json"
    assert tuned.entry.results["grid"].heuristic_ms == pytest.approx(1.0)
    for from_file in (False, True):  # the entry of this process, then the one of its file
        if from_file:
            lookup.clear_table_cache()
            triton_gru.plan.planner.clear_plan_cache()
        plan = choose(PROBLEM, H200)
        assert (plan.kernel, plan.config, plan.is_tuned) == ("grid", fastest.config, True)
        assert ("H200.json" in plan.source) == from_file
        assert plan.time.milliseconds == 0.5 and dict(plan.rejection_reasons)["torch"] == "measured 1.00 ms"
    assert choose(PROBLEM, H200, "grid").config == fastest.config
    arguments = ["explain", "--hidden", "512", "--batch", "16", "--dtype", "fp16", "--device", "H200"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "measured   500 us in a CUDA graph (table /" in printed and "H200.json, of 20" in printed
    text = str(tuned)
    for line in (
        "winner     grid",
        "runner-up",
        "untuned",
        "baseline   nn.GRU",
        "in a CUDA graph 1.00 ms",
        "candidates",
    ):
        assert line in text


def test_auto_uses_torch_if_it_is_faster(tables):
    tune(SMALL, ms=plant_times(lambda candidate: 1.2))
    assert choose(SMALL, H200).kernel == "torch"
    assert choose(SMALL, H200, "block").is_tuned
    # Kernels still serve options that `nn.GRU` lacks.
    assert choose(dataclasses.replace(SMALL, resets=True), H200).kernel in KERNELS


@pytest.mark.parametrize("slow, fast", [("eager", "graph"), ("graph", "eager")])
def test_kernels_must_be_as_fast_in_every_mode(slow, fast, tables):
    times = {slow: 1.2, fast: 0.2}
    ((tuned,), _) = tune(SMALL, ms=lambda candidate, mode: 1.0 if candidate == TORCH else times[mode])
    assert tuned.entry.winner == "torch"


@pytest.mark.parametrize("seed", range(10))
def test_plan_is_not_slower_than_torch_or_other_candidates(seed, tables):
    """This holds for random times, within the noise, and again after tuning with other times."""
    rng = random.Random(seed)
    for _ in range(3):
        times = defaultdict(lambda: rng.uniform(0.4, 1.6))

        def get_ms(candidate, mode, times=times):
            return times[candidate, mode]

        triton_gru.tune([PROBLEM], bench=PlantedBench(get_ms), remeasure=True)
        plan = choose(PROBLEM, H200)
        taken = Candidate(plan.kernel, plan.config, plan.projection)
        for mode in ("eager", "graph"):
            assert 0.97 * get_ms(taken, mode) <= get_ms(TORCH, mode)
        if taken != TORCH:
            assert 0.97**2 * get_ms(taken, "graph") <= min(
                get_ms(candidate, "graph") for candidate in candidates(PROBLEM, H200)
            )


def test_noise_does_not_change_a_table(tables):
    ours = Candidate("block", heuristic("block", SMALL, H200))
    for ms in (0.98, 1.02):  # all others take 1
        ((tuned,), _) = tune(dataclasses.replace(SMALL, steps=200), ms=plant_one_time(ours, ms))
        assert (tuned.entry.winner, tuned.entry.results["block"].config) == ours[:2]
        other_candidate = next(
            candidate for candidate in candidates(SMALL, H200) if candidate.kernel == "block" and candidate != ours
        )
        triton_gru.tune([SMALL], bench=PlantedBench(plant_one_time(other_candidate, ms)), remeasure=True)
        assert choose(SMALL, H200).config == ours.config
    triton_gru.tune([SMALL], bench=PlantedBench(plant_one_time(other_candidate, 0.8)), remeasure=True)
    assert choose(SMALL, H200).config == other_candidate.config
    triton_gru.tune([SMALL], bench=PlantedBench(plant_times(lambda candidate: 1.04)), remeasure=True)
    assert choose(SMALL, H200).kernel == "torch"
    triton_gru.tune([SMALL], bench=PlantedBench(plant_times(lambda candidate: 0.98)), remeasure=True)
    assert choose(SMALL, H200).kernel == "torch", "not clearly faster than the entry in the table"


@pytest.mark.parametrize(
    "times, other_times, expected",
    [([0.9], [1.0], True), ([0.98], [1.0], False), ([0.8, 0.9, 1.0], [1.0], False), ([0.5, 0.9, 1.0], [1.1], True)],
)
def test_is_clearly_faster(times, other_times, expected):
    assert is_clearly_faster(quantiles(times), quantiles(other_times)) is expected


def test_failures_are_counted_and_reported(tables):
    def find_failure(candidate):
        if candidate.config.num_warps == 8 if candidate.kernel == "step" else candidate.kernel == "grid":
            return "it spills registers"
        return ""

    single = dataclasses.replace(PROBLEM, steps=1)
    ((tuned,), _) = tune(single, ms=plant_times(lambda candidate: 0.5), out=find_failure)
    assert tuned.entry.failed["it spills registers"] > 10
    assert "it spills" in str(tuned)
    assert "grid" not in tuned.entry.results and tuned.entry.winner == "step"


def test_skips_candidates_that_cannot_be_timed(tables):
    """Memory may suffice for judging and not for timing, as judged calls are shorter."""
    planted = PlantedBench(plant_times(lambda candidate: 0.5))
    time_candidates = planted.time_candidates
    planted.time_candidates = lambda candidates, mode, *limits: time_candidates(
        [
            candidate
            for candidate in candidates
            if candidate.kernel != "grid" and (candidate.kernel != "torch" or mode == "eager")
        ],
        mode,
        *limits,
    )
    (tuned,) = triton_gru.tune([PROBLEM], bench=planted)
    assert set(tuned.entry.results) == {"step", "step+cublas"} and tuned.entry.failed["it could not be timed"] > 10
    planted.time_candidates = lambda candidates, *limits: {}
    assert triton_gru.tune([SMALL], bench=planted) == []


def test_problem_without_running_candidates_goes_to_torch_or_nowhere(tables):
    reports = []
    planted = PlantedBench(plant_times(lambda candidate: 0.5), out=lambda candidate: "no compiler")
    reset_before = dataclasses.replace(PROBLEM, reset_after=False)
    assert triton_gru.tune([reset_before], bench=planted, report=reports.append) == []
    assert any("nothing runs" in str(line) and "no compiler" in str(line) for line in reports)
    assert not list(tables.iterdir())
    ((tuned,), _) = tune(PROBLEM, ms=plant_times(lambda candidate: 0.5), out=lambda candidate: "no compiler")
    assert tuned.entry.winner == "torch"


def test_interrupted_run_resumes(tables):
    three = [dataclasses.replace(PROBLEM, batch_size=batch) for batch in (1, 4, 16)]
    planted = PlantedBench(plant_times(lambda candidate: 0.5), stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        triton_gru.tune(three, bench=planted)
    assert planted.closed
    lookup.clear_table_cache()  # another process
    results, planted = tune(*three, ms=plant_times(lambda candidate: 0.5))
    assert [result.is_from_table for result in results] == [True, False, False]
    assert [problem.batch_size for problem in planted.problems] == [4, 16]
    _, planted = tune(*three, ms=plant_times(lambda candidate: 0.5))
    assert planted.problems == []


def test_failed_write_is_repeated_by_the_next_run(tables, monkeypatch):
    with monkeypatch.context() as full:
        fill_disk(full, "fsync")
        with pytest.warns(UserWarning, match="table cannot be written: .*No space left on device"):
            (tuned,), _ = tune(PROBLEM, ms=plant_times(lambda candidate: 0.5))
    assert tuned.table_path is None and not (tables / "H200.json").exists()
    (tuned,), planted = tune(PROBLEM, ms=plant_times(lambda candidate: 0.5))
    assert tuned.is_from_table and tuned.table_path == tables / "H200.json" and not planted.problems
    assert [entry.key for entry in store.load(tuned.table_path).entries] == [PROBLEM.key()]


def test_shapes_of_another_tuner_are_not_measured_again(tables):
    """Two tuners share a list of shapes: the one that comes to a shape first measures it."""
    three = [dataclasses.replace(PROBLEM, batch_size=batch) for batch in (1, 4, 16)]
    planted, reports = PlantedBench(plant_times(lambda candidate: 0.5)), []
    open_problem = planted.open_problem

    def open_as_another_tuner_works(problem):
        if problem == three[0] and len(planted.problems) == 0:  # the other tuner begins with the last shape
            theirs = make_entry(three[2], "grid", grid=(heuristic("grid", three[2], H200), 0.25), torch=(None, 1.0))
            store.save([theirs], H200, tables)
        return open_problem(problem)

    planted.open_problem = open_as_another_tuner_works
    results = triton_gru.tune(three, bench=planted, report=reports.append)
    assert [problem.batch_size for problem in planted.problems] == [1, 4]
    assert [result.is_from_table for result in results] == [False, False, True]
    assert any("B<=16 T=100: another tuner has measured it meanwhile" in str(line) for line in reports)
    assert choose(three[2], H200).time.milliseconds == 0.25
    assert [entry.ms for entry in store.load(tables / "H200.json").entries] == [0.25, 0.5, 0.5]
    planted.problems.clear()
    triton_gru.tune(three, bench=planted, remeasure=True)
    assert len(planted.problems) == 3


def test_budget_cuts_candidates_and_then_problems(tables):
    other_problems = [dataclasses.replace(PROBLEM, batch_size=batch) for batch in (1, 4)]
    planted = PlantedBench(plant_times(lambda candidate: 0.5))
    (tuned,) = triton_gru.tune([PROBLEM, *other_problems], bench=planted, budget=0)
    untuned = {Candidate(kernel, heuristic(kernel, PROBLEM, H200)) for kernel in ("grid", "step")}
    assert set(planted.compiled) == untuned, "the untuned configurations are measured even without time"
    assert tuned.entry.failed == {"not tried: the time was over": tuned.entry.candidates - 2}


def test_budget_limits_the_runs_of_candidates(tables, monkeypatch):
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
    (tuned,) = triton_gru.tune([PROBLEM], bench=planted, budget=10)
    untuned = {TORCH, *(Candidate(kernel, heuristic(kernel, PROBLEM, H200)) for kernel in ("grid", "step"))}
    assert set(judged[:3]) == untuned and len(judged) == 11
    assert tuned.entry.failed == {"not tried: the time was over": tuned.entry.candidates - 10}
    assert tuned.entry.winner == "grid"


def test_problems_of_one_key_are_measured_once(tables):
    problems_of_one_key = [dataclasses.replace(PROBLEM, batch_size=batch) for batch in (9, 16, 12)]
    problems_of_one_key += [dataclasses.replace(PROBLEM, resets=True), dataclasses.replace(PROBLEM, reverse=True)]
    _, planted = tune(*problems_of_one_key, ms=plant_times(lambda candidate: 0.5))
    assert [problem.batch_size for problem in planted.problems] == [16]
    configs = {choose(dataclasses.replace(PROBLEM, batch_size=batch), H200).config for batch in range(9, 17)}
    assert len(configs) == 1
    assert choose(dataclasses.replace(PROBLEM, batch_size=17), H200).source == "heuristic"


def test_stale_entries_are_measured_again(tables, monkeypatch):
    monkeypatch.setitem(revision.environment(), "triton", "3.6.0")
    tune(SMALL, ms=plant_times(lambda candidate: 1.2))
    monkeypatch.setitem(revision.environment(), "triton", "9.9.9")
    lookup.clear_table_cache()
    triton_gru.plan.planner.clear_plan_cache()
    plan = choose(SMALL, H200)
    assert plan.kernel == "torch" and "stale: made with triton 3.6, this is 9.9" in plan.source
    results, planted = tune(SMALL, ms=plant_times(lambda candidate: 0.5))
    assert not results[0].is_from_table and len(planted.problems) == 1
    assert choose(SMALL, H200).kernel == "block"


def test_sizes_of_0_are_refused(tables):
    for name in ("batch_size", "input_size", "hidden_size"):
        bench = PlantedBench(plant_times(lambda candidate: 2.0))
        with pytest.raises(ValueError, match="no size of a problem to be tuned may be 0, got T="):
            triton_gru.tune([PROBLEM, dataclasses.replace(PROBLEM, **{name: 0})], bench=bench)
        assert not bench.compiled


def test_tuning_during_a_graph_capture_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA graph is being captured"):
        triton_gru.tune([PROBLEM], bench=PlantedBench(None))


def test_tuning_without_a_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(bench, "find_device", lambda device: None)
    with pytest.raises(RuntimeError, match="no kernel runs on cpu"):
        triton_gru.tune([PROBLEM], device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="there is no GPU to tune for"):
        triton_gru.tune([PROBLEM])


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
@pytest.mark.parametrize("precision", [(torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")])
def test_space_holds_runnable_candidates_and_the_heuristic(device, precision):
    dtype, fp32 = precision
    for hidden, batch, steps in ((64, 4, 100), (192, 1, 100), (512, 64, 100), (2048, 1, 100), (4096, 4, 1)):
        problem = dataclasses.replace(
            PROBLEM, hidden_size=hidden, batch_size=batch, steps=steps, dtype=dtype, precision=fp32
        )
        space_of_problem = candidates(problem, device)
        assert len(space_of_problem) == len(set(space_of_problem))
        for kernel in KERNELS:
            config = heuristic(kernel, problem, device)
            assert isinstance(config, str) or Candidate(kernel, config) in space_of_problem[:3]
        for _, config, projection in space_of_problem:
            assert projection is None
            assert space.unsupported_config_reason(config, problem, device) == ""
            if isinstance(config, GridConfig):
                assert config.programs * config.copies * config.directions <= device.sms


def test_tuning_with_real_times(device, tables, launched, monkeypatch):
    """A few candidates of each kernel are compiled, judged and timed without planted times."""
    monkeypatch.setattr("triton_gru.tuning.timing.WARMUP", 1)
    monkeypatch.setattr(run, "_SCREENING_ROUNDS", 1)
    monkeypatch.setattr(run, "_FINAL_ROUNDS", 3)
    monkeypatch.setattr("triton_gru.tuning.timing.LEAST_ROUNDS", 1)

    def choose_two_of_each_kernel(problem, gpu):
        of_kernel = defaultdict(list)
        for candidate in candidates(problem, gpu):
            of_kernel[candidate.kernel].append(candidate)
        return [candidate for kernel in KERNELS for candidate in of_kernel[kernel][:2]]

    monkeypatch.setattr(run, "candidates", choose_two_of_each_kernel)
    problem = dataclasses.replace(PROBLEM, hidden_size=16, input_size=5, batch_size=3, steps=2)
    (tuned,) = triton_gru.tune([problem], device=device)
    assert tuned.entry.failed == {}
    with_cublas = {name for name in tuned.entry.results if name.endswith("+cublas")}
    assert with_cublas and set(tuned.entry.results) - with_cublas == {"torch", *KERNELS}
    assert {"block_scan", "grid_scan", "step_scan", "cublas", "arrange_products"} <= set(launched)
    described_device = find_device(torch.device(device, 0) if device == "cuda" else torch.device(device))
    assert tuned.table_path == tables / store.file_name(described_device)
    assert choose(problem, described_device, "block").is_tuned
    run_right = triton_gru.launch.execute.run

    def run_wrong(call, plan):
        """Run the call. Make the output of ``step`` and the h_n of ``block`` wrong."""
        output, h_n = run_right(call, plan)
        if plan.kernel == "step":
            output += 1
        elif plan.kernel == "block":
            h_n[-1, -1, -1] = torch.nan  # the output stays right
        return output, h_n

    monkeypatch.setattr(triton_gru.launch.execute, "run", run_wrong)
    (tuned,) = triton_gru.tune([problem], device=device, remeasure=True)
    assert {"torch", "grid"} <= set(tuned.entry.results) <= {"torch", "grid", "grid+cublas"}
    assert set(tuned.entry.failed) == {"wrong: further from float64 than it may be"}


def test_candidates_are_compiled_in_other_processes(tmp_path, monkeypatch):
    """The GPU is emulated. test_compile_pool.py tests failures of these processes."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # one process at a time: each imports torch
    problem = dataclasses.replace(PROBLEM, hidden_size=16, input_size=16)
    block = Candidate("block", heuristic("block", problem, H200))
    impossible = Candidate("block", dataclasses.replace(block.config, num_warps=3))
    monkeypatch.setattr(bench, "find_device", lambda device: H200)
    with contextlib.closing(bench.Bench(torch.device("cuda"))) as h200_bench:
        reasons = dict(h200_bench.compile(problem, [block, impossible], 120))
        assert reasons[block] == "" and reasons[impossible]
        assert any(tmp_path.rglob("*.cubin"))
        assert dict(h200_bench.compile(problem, [block], 0)) == {}
