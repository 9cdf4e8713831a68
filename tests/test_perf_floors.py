"""Floors: rates measured on a device, and the lower bound of a case that follows from them."""

import dataclasses
import itertools
import math
import random
import types

import pytest
import torch
import triton
import triton.language as tl

from perf import floors
from perf.case import Case
from perf.floors import Floors, Hops
from perf.floors_kernel import read_shared
from triton_gru.plan.config import HANDOVERS

from .perf_calls import read_csv
from .planted import H200

# 100 multiprocessors that hold 1 000 bytes each. Each of them makes 1e10 FLOPs a second.
CHIP = Floors(
    memory=1e9, l2=4e9, matrix={("float16", ""): 1e12}, launch={"eager": 5e-6, "graph": 2e-6, "host": 4e-6},
    hop=1e-6, step=1e-8, multiprocessors=100, on_chip=1000, l2_bytes=10_000,
)  # fmt: skip
QUICK = dataclasses.replace(CHIP, memory=1e14, launch={"eager": 0.0})  # no launch time, and next to none for memory


def seconds(chip, case, mode="eager", l2="cold"):
    """Return the floor of a case on a chip, in seconds."""
    return chip.compute_floor_ms(case, mode, l2) / 1000


def test_floor_counts_launch_and_work():
    case = Case("fp16", hidden=8, batch=2, steps=10)
    state, w_hh = 2 * 8 * 2, 3 * 64 * 2
    moved = 2 * 10 * state + 2 * w_hh + state
    assert seconds(CHIP, case) == pytest.approx(5e-6 + moved / 1e9)
    assert seconds(CHIP, case, "graph", "warm") == pytest.approx(2e-6 + moved / 4e9)
    assert seconds(CHIP, case, "host") == pytest.approx(4e-6)
    busy = dataclasses.replace(CHIP, matrix={("float16", ""): 1e6})
    assert seconds(busy, case) == pytest.approx(5e-6 + 10 * 2 * (2 * 6 * 64) / 1e6)
    assert CHIP.compute_floor_ms(dataclasses.replace(case, precision="bf16"), "eager", "warm") == ""


def test_small_step_on_one_multiprocessor_needs_no_hop():
    """384 FLOPs take 38.4 ns. Half of that, 19.2 ns, adds to the 10 ns of each step. Exception: the first."""
    case = Case("fp16", hidden=8, batch=1, steps=10)
    assert seconds(QUICK, case) == pytest.approx(10 * 10e-9 + 9 * 19.2e-9)
    assert seconds(QUICK, dataclasses.replace(case, layers=3)) == pytest.approx(12 * 10e-9 + 11 * 19.2e-9)


def test_hop_counts_if_several_multiprocessors_are_faster():
    """One multiprocessor would take 9.6 us for the 384 FLOPs, and half of that is more than a hop."""
    slow = dataclasses.replace(QUICK, matrix={("float16", ""): 4e9})
    case = Case("fp16", hidden=8, batch=1, steps=10)
    assert seconds(slow, case) == pytest.approx(10 * 1e-8 + 9 * 1e-6)
    assert seconds(slow, dataclasses.replace(case, steps=1)) == pytest.approx(768 / 4e9)  # no step after it


def test_w_hh_beyond_one_multiprocessor_costs_reads_or_a_hop():
    """1 400 of 2 400 bytes do not fit. Half of them take 1.82 ns at 384 GB/s; half of 2 400 FLOPs take 0.12 ns."""
    strong = dataclasses.replace(QUICK, matrix={("float16", ""): 1e15})
    case = Case("fp16", hidden=20, batch=1, steps=10)
    assert seconds(strong, case) == pytest.approx(10 * 1e-8 + 9 * 700 / 384e9)
    assert seconds(dataclasses.replace(strong, hop=1e-9), case) == pytest.approx(10 * 1e-8 + 9 * 1e-9)


def test_many_rows_add_work_and_no_hop():
    """Up to 100 multiprocessors compute a row each. With 4 000 rows, all FLOPs take 3 us a step."""
    case = Case("fp16", hidden=8, batch=8, steps=10)
    assert seconds(QUICK, case) == pytest.approx(10 * 10e-9 + 9 * 19.2e-9)
    assert seconds(QUICK, dataclasses.replace(case, batch=4000)) == pytest.approx(10 * 4000 * 768 / 1e12)


def test_w_hh_beyond_the_chip_is_read_every_other_step():
    """Four multiprocessors hold 4 000 of a layer's 9 600 bytes. Steps 3, 5, 7 and 9 read the other 5 600."""
    chip = dataclasses.replace(QUICK, multiprocessors=4, l2=1e8)
    case = Case("fp16", hidden=40, batch=1, steps=10, layers=2)
    assert seconds(chip, case) == pytest.approx(4 * 2 * 5600 / 1e8)
    assert seconds(chip, dataclasses.replace(case, steps=2)) < 5600 / 1e8
    small = dataclasses.replace(chip, l2=1e14, memory=1e8, l2_bytes=5000)
    moved = 2 * 10 * 80 + 2 * (2 * 9600 + 80) + 4 * 2 * 600
    assert seconds(small, case) == pytest.approx(moved / 1e8)


def test_floor_of_two_directions_packed_input_and_frames():
    """The test asserts the bytes moved first, then the FLOPs, then the steps. Exception: of a frame only the bytes."""
    still = dataclasses.replace(CHIP, launch={"eager": 0.0})
    slow = dataclasses.replace(still, matrix={("float16", ""): 1e3}, hop=1e-9)
    both = Case("fp16", hidden=8, batch=2, steps=10, layers=2, directions=2)
    weights, state = 3 * 8 * (8 + 8) + 3 * 8 * (16 + 8), 2 * 8
    moved = 2 * (10 * 3 * state + 2 * weights + 4 * state)
    assert seconds(still, both) == pytest.approx(moved / 1e9)
    assert seconds(slow, both) == pytest.approx(10 * 2 * 2 * 2 * weights / 1e3)
    assert seconds(QUICK, both) == pytest.approx(20 * 10e-9 + 19 * 19.2e-9)

    packed = Case("fp16", hidden=20, batch=12, steps=10, layout="packed")
    steps = sum(packed.lengths)
    assert 10 * 12 > steps > 10
    moved = 2 * (2 * steps * 20 + 2 * 1200 + 12 * 20)
    assert seconds(still, packed) == pytest.approx(moved / 1e9)
    assert seconds(slow, packed) == pytest.approx(steps * 4 * 1200 / 1e3)
    assert seconds(QUICK, packed) == pytest.approx(10 * 10e-9 + 9 * 120e-9)

    frame = Case("fp16", hidden=8, batch=2, steps=1, is_streaming=True)  # a frame reads and writes the state
    assert seconds(still, frame) == pytest.approx(2 * (2 * 16 + 2 * 192 + 2 * 16) / 1e9)


def strategies(chip, case):
    """Return the seconds of a call by three strategies: layer after layer, with all traffic and FLOPs overlapped."""
    rate, h, steps = chip.matrix["float16", ""], case.hidden, case.steps * case.layers
    product = 6 * h * h / (rate / chip.multiprocessors)  # of one row's step on one multiprocessor
    reading = max(0, 6 * h * h - chip.on_chip) / 384e9
    rows = math.ceil(case.batch / chip.multiprocessors)
    one_per_row = steps * (rows * product + reading + chip.step)
    # One unit of a step after the other, each followed at once by its products of the next step.
    two_steps = max(2 * product + chip.step, product + 2 * chip.step) + 2 * reading
    in_turns = math.ceil(steps / 2) * two_steps if rows == 1 else math.inf
    all_per_row = steps * (case.batch * product / chip.multiprocessors + chip.step) + (steps - 1) * chip.hop
    moved = 2 * (2 * case.steps * case.batch * h + case.layers * (6 * h * h + case.batch * h))
    again = (case.steps - 1) * case.layers * max(0, 6 * h * h - chip.multiprocessors * chip.on_chip)
    work = max((moved + again) / chip.memory, again / chip.l2, steps * case.batch * 12 * h * h / rate)
    return [chip.launch["eager"] + max(work, scan) for scan in (one_per_row, in_turns, all_per_row)]


SLOWER = {"memory": 0.5, "l2": 0.5, "hop": 2, "step": 2, "on_chip": 0.5, "l2_bytes": 0.5}


def draw_chip(rng):
    """Return the floors of a random chip. Rates and latencies span several powers of ten."""
    return Floors(
        memory=10 ** rng.uniform(10, 14), l2=10 ** rng.uniform(12, 15), launch={"eager": 1e-9},
        matrix={("float16", ""): 10 ** rng.uniform(10, 16)},
        hop=10 ** rng.uniform(-8, -5), step=10 ** rng.uniform(-9, -6),
        multiprocessors=rng.randint(1, 200), on_chip=rng.randint(100, 1 << 20), l2_bytes=rng.randint(0, 1 << 20),
    )  # fmt: skip


def test_floor_is_at_most_each_strategy_and_grows_with_case_and_slower_chip():
    rng = random.Random(0)
    for _ in range(500):
        chip = draw_chip(rng)
        case = Case("fp16", rng.randint(1, 600), rng.choice((1, 4, 300)), rng.randint(1, 50), rng.randint(1, 3))
        floor = seconds(chip, case)
        assert floor <= min(strategies(chip, case)) * (1 + 1e-9), (chip, case)
        assert seconds(chip, dataclasses.replace(case, steps=case.steps + 1)) >= floor
        assert seconds(chip, dataclasses.replace(case, steps=3 * case.steps)) > floor
        assert seconds(chip, dataclasses.replace(case, hidden=case.hidden + 1)) >= floor
        slower = [dataclasses.replace(chip, **{name: by * getattr(chip, name)}) for name, by in SLOWER.items()]
        slower.append(dataclasses.replace(chip, matrix={name: rate / 2 for name, rate in chip.matrix.items()}))
        assert all(seconds(slow_chip, case) >= floor for slow_chip in slower), (chip, case)


def test_floors_are_measured_once_and_read_back(tmp_path, monkeypatch):
    launch_times = itertools.cycle([0.5] + 19 * [1.0])  # of each 20 launches, one is not delayed
    monkeypatch.setattr(floors, "host_clock", lambda function: next(launch_times))
    first = floors.load_or_measure(tmp_path, "cpu")
    assert first.launch["host"] == 0.5e-3
    assert 1e7 < first.memory < 1e13  # wide bounds, as other processes may use the machine
    assert 1e7 < first.l2 < 1e14
    assert 1e7 < first.matrix["float32", "ieee"] < 1e15
    assert 0 < first.launch["eager"] < 1
    path = tmp_path / "floors-cpu.csv"
    written = path.read_bytes()
    assert floors.load_or_measure(tmp_path, "cpu") == first
    assert path.read_bytes() == written
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # as after a kill: the file is incomplete, and measured again
    assert floors.load_or_measure(tmp_path, "cpu").memory > 0
    # The header and the last row are missing from the first run's lines. The second run is complete.
    assert len(read_csv(path)) == (len(lines) - 2) + (len(lines) - 1)
    assert floors.load_or_measure(tmp_path, "cpu", remeasure=True).memory > 0


def test_sweeps_do_without_floors_after_two_failures(tmp_path, monkeypatch, capsys):
    """A measurement that ends the process, as a hang does, counts as one that fails with an error."""
    failures = iter([SystemExit("killed"), RuntimeError("CUDA error")])

    def fail(device):
        yield floors.Row(provider="floor.memory", config="1 bytes", n=1, p20_ms=1.0)
        raise next(failures, AssertionError("measured again"))

    monkeypatch.setattr(floors, "_measure", fail)
    with pytest.raises(SystemExit):
        floors.load_or_measure(tmp_path, "cpu")
    for _ in range(2):
        unknown = floors.load_or_measure(tmp_path, "cpu")
        assert unknown.compute_floor_ms(Case("fp32", 8, 1, 1), "eager", "warm") == ""
        assert str(unknown).startswith("unknown, as their measurement failed")
    assert capsys.readouterr().out == "floors could not be measured: RuntimeError: CUDA error\n"
    statuses = [row["status"] for row in read_csv(tmp_path / "floors-cpu.csv")]
    assert statuses == ["begun", "ok", "begun", "ok", "failed"]
    with pytest.raises(AssertionError, match="measured again"):
        floors.load_or_measure(tmp_path, "cpu", remeasure=True)


def test_read_shared_reads_every_element(kernels_on_cpu):
    """Three programs read four parts of 64 elements, five times."""
    source = torch.arange(4 * 64, dtype=torch.int32)
    result = torch.zeros(3, dtype=torch.int32)
    read_shared[(3,)](source, result, rounds=5, PART=64, PARTS=4)
    assert result.tolist() == [5 * int(source.sum())] * 3


def make_hops(handover):
    return Hops(handover, steps=3, device=torch.device("cpu"))


@pytest.mark.parametrize("handover", HANDOVERS)
def test_every_handover_ends_with_the_known_answer(handover, kernels_on_cpu):
    hops = make_hops(handover)
    assert hops.is_right(hops.launch.start)
    assert not hops.is_right(lambda: None)  # nothing runs, so the results stay zero


@triton.jit
def _make_elements_without_history(history, element):
    return (element & 1023).to(tl.float32)


def test_hop_that_hands_over_wrong_elements_is_wrong(kernels_on_cpu, monkeypatch):
    monkeypatch.setattr("perf.floors_kernel._make_elements", _make_elements_without_history)
    # A new JITFunction, as the old one would run what it compiled with the original `_make_elements`.
    monkeypatch.setattr(floors, "hop_steps", triton.jit(floors.hop_steps.fn, do_not_specialize=["steps"]))
    assert not any(hops.is_right(hops.launch.start) for hops in map(make_hops, HANDOVERS))


@pytest.fixture
def stub_hops(monkeypatch):
    """Replace hops on a GPU by ones of 3 us by "flag" and 2 us by "probe". A launch takes 0.5 ms more.

    Return an empty list. A test adds the names of hand-overs to it whose results shall be wrong. If the test adds
    "gives up", all hand-overs give up.
    """
    wrong = []

    class Stub:
        def __init__(self, handover, steps, *device):
            self.handover, self.launch = handover, types.SimpleNamespace(start=(handover, steps))

        def is_right(self, call):
            if "gives up" in wrong:
                raise RuntimeError("gave up")
            return self.handover not in wrong

    def samples(calls, rounds, clock, seconds):
        microseconds = {"flag": 3, "probe": 2}
        return {
            name: [0.5 + 0.001 * microseconds[handover] * steps] * rounds
            for name, [(handover, steps)] in calls.items()
        }  # fmt: skip

    for name, stub in {"Hops": Stub, "samples": samples, "capture_graph": lambda call: (call, None)}.items():
        monkeypatch.setattr(floors, name, stub)
    monkeypatch.setattr(floors, "find_device", lambda device: H200)
    return wrong


def test_hop_time_is_from_two_launches_of_the_fastest_right_handover(stub_hops):
    row = floors.measure_hop(5)
    assert (row.provider, row.config, row.n, row.p20_ms) == ("floor.hop", "1 hops by probe", 5, pytest.approx(0.002))
    stub_hops.append("probe")
    row = floors.measure_hop(5)
    assert (row.config, row.p20_ms) == ("1 hops by flag", pytest.approx(0.003))


def test_without_a_right_hop_there_is_no_floor(stub_hops):
    stub_hops += HANDOVERS
    with pytest.raises(RuntimeError, match="flag: wrong result.*probe: wrong result"):
        floors.measure_hop(5)
    stub_hops.append("gives up")
    with pytest.raises(RuntimeError, match="flag: gave up.*probe: gave up"):
        floors.measure_hop(5)


@pytest.mark.gpu
@pytest.mark.usefixtures("alone")
def test_floors_of_a_gpu_are_plausible(tmp_path):
    measured = floors.load_or_measure(tmp_path, "cuda")
    assert 2e11 < measured.memory < measured.l2 < 1e14
    assert 1e-7 < measured.hop < 1e-5
    assert 1e-8 < measured.step < measured.hop
    assert measured.matrix["float16", ""] > measured.matrix["float32", "tf32"] > measured.matrix["float32", "ieee"]
    assert 0 < measured.launch["graph"] < 1e-4
    assert set(measured.launch) == {"eager", "graph", "host"}
