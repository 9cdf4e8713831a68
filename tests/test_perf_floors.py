"""The floors: what is measured, and what follows from it for a case."""

import dataclasses

import pytest
import torch

from perf import floors
from perf.case import Case
from perf.floors import Floors
from perf.floors_kernel import read_shared, smallest_steps

from .perf_calls import read


def test_the_floor_counts_launch_work_and_exchange():
    """By hand, for a chip of 4 multiprocessors with 1000 bytes each."""
    chip = Floors(
        memory=1e9, l2=4e9, matrix={("float16", ""): 1e12}, launch={"eager": 5e-6, "graph": 2e-6, "host": 4e-6},
        hop=1e-6, step=1e-8, multiprocessors=4, on_chip=1000, l2_bytes=10_000,
    )  # fmt: skip
    small = Case("fp16", hidden=8, batch=2, steps=10)  # W_hh of 384 bytes: one multiprocessor holds it
    state, w_hh = 2 * 8 * 2, 3 * 64 * 2
    moved = 2 * 10 * state + 2 * w_hh + state
    assert chip.of(small, "eager", "warm") == pytest.approx(1e3 * (5e-6 + moved / 4e9))
    assert chip.of(small, "graph", "cold") == pytest.approx(1e3 * (2e-6 + moved / 1e9))
    quick = dataclasses.replace(chip, l2=1e13)
    assert quick.of(small, "graph", "warm") == pytest.approx(1e3 * (2e-6 + 10 * 1e-8))
    assert chip.of(small, "host", "warm") == pytest.approx(4e-3)

    split = Case("fp16", hidden=20, batch=20, steps=10)  # 2400 bytes: three of them, and 8 rows at a time
    quick = dataclasses.replace(chip, memory=1e14)
    assert quick.of(split, "eager", "warm") == pytest.approx(1e3 * (5e-6 + 10 * (1e-8 + 1e-6 + 3 * 8 * 40 / 4e9)))

    beyond = Case("fp16", hidden=40, batch=1, steps=10, layers=2)  # 9600 bytes a layer: of each, 5600 are beyond 4000
    moved = 2 * 10 * 80 + 2 * (2 * 9600 + 80) + 9 * 2 * 5600
    assert chip.of(beyond, "eager", "warm") == pytest.approx(1e3 * (5e-6 + moved / 1e9))
    assert quick.of(beyond, "eager", "cold") == pytest.approx(1e3 * (5e-6 + 11 * (1e-8 + 1e-6 + 4 * 80 / 4e9)))

    busy = dataclasses.replace(chip, matrix={("float16", ""): 1e6})
    flops = 10 * 2 * 2 * 6 * 64
    assert busy.of(small, "eager", "warm") == pytest.approx(1e3 * (5e-6 + flops / 1e6))
    assert chip.of(dataclasses.replace(small, precision="bf16"), "eager", "warm") == ""


def test_the_floor_of_two_directions_of_packed_input_and_of_frames():
    """By hand, for the same chip; each time the work first, then the exchange."""
    chip = Floors(
        memory=1e9, l2=1e9, matrix={("float16", ""): 1e12}, launch={"eager": 0.0}, hop=1e-6, step=1e-8,
        multiprocessors=4, on_chip=1000,
    )  # fmt: skip
    slow, quick = dataclasses.replace(chip, matrix={("float16", ""): 1e3}), dataclasses.replace(chip, memory=1e14)

    def milliseconds(chip, case):
        return chip.of(case, "eager", "warm")

    both = Case("fp16", hidden=8, batch=2, steps=10, layers=2, directions=2)
    weights, state = 3 * 8 * (8 + 8) + 3 * 8 * (16 + 8), 2 * 8
    moved = 2 * (10 * 3 * state + 2 * weights + 4 * state)
    assert milliseconds(chip, both) == pytest.approx(1e3 * moved / 1e9)
    assert milliseconds(slow, both) == pytest.approx(1e3 * 10 * 2 * 2 * 2 * weights / 1e3)
    assert milliseconds(quick, both) == pytest.approx(1e3 * 2 * 10 * 1e-8)

    packed = Case("fp16", hidden=20, batch=12, steps=10, packed=True)  # 2400 bytes: three multiprocessors
    steps, rows = sum(packed.lengths), sum(min(8, n) for n in packed.batch_sizes)
    assert 10 * 8 > rows > 10 and steps < 10 * 12
    moved = 2 * (2 * steps * 20 + 2 * 1200 + 12 * 20)
    assert milliseconds(dataclasses.replace(chip, memory=1e8), packed) == pytest.approx(1e3 * moved / 1e8)
    assert milliseconds(slow, packed) == pytest.approx(1e3 * steps * 4 * 1200 / 1e3)
    assert milliseconds(quick, packed) == pytest.approx(1e3 * (10 * (1e-8 + 1e-6) + 3 * rows * 40 / 1e9))

    frame = Case("fp16", hidden=8, batch=2, steps=1, streaming=True)  # the state comes and goes
    assert milliseconds(chip, frame) == pytest.approx(1e3 * 2 * (2 * 16 + 2 * 192 + 2 * 16) / 1e9)


def test_floors_are_measured_once_and_read_back(tmp_path):
    first = floors.load_or_measure(tmp_path, "cpu")
    assert 1e7 < first.memory < 1e13  # wide, as others may be at work on the machine
    assert 1e7 < first.l2 < 1e14
    assert 1e7 < first.matrix["float32", "ieee"] < 1e15
    assert 0 < first.launch["eager"] < 1
    path = tmp_path / "floors-cpu.csv"
    written = path.read_bytes()
    assert floors.load_or_measure(tmp_path, "cpu") == first
    assert path.read_bytes() == written
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # killed before its end: not to be relied on
    assert floors.load_or_measure(tmp_path, "cpu").memory > 0
    assert len(read(path)) == 2 * len(lines) - 3
    assert floors.load_or_measure(tmp_path, "cpu", anew=True).memory > 0


def test_what_floors_are_measured_by_does_what_it_says():
    numbers = torch.arange(4 * 64, dtype=torch.int32)
    result = torch.zeros(3, dtype=torch.int32)
    read_shared[(3,)](numbers, result, 5, PART=64, PARTS=4)
    assert result.tolist() == [5 * int(numbers.sum())] * 3


def test_the_smallest_step_is_one_of_a_gru():
    w, result, h = torch.randn(16, 16).half(), torch.full((16, 8), float("nan")), torch.ones(16, 8)
    smallest_steps[(1,)](w, result, 3, ISA="interpreter")
    for _ in range(3):
        products = w.float() @ h.half().float()
        gate = products.sigmoid()
        new = (gate * products).tanh()
        h = new + gate * (h - new)
    torch.testing.assert_close(result, h)


@pytest.mark.gpu
@pytest.mark.usefixtures("alone")
def test_floors_of_a_gpu(tmp_path):
    measured = floors.load_or_measure(tmp_path, "cuda")
    assert 2e11 < measured.memory < measured.l2 < 1e14
    assert 2e-7 < measured.hop < 1e-5
    assert 1e-8 < measured.step < measured.hop
    assert measured.matrix["float16", ""] > measured.matrix["float32", "tf32"] > measured.matrix["float32", "ieee"]
    assert 0 < measured.launch["graph"] < 1e-4
    assert set(measured.launch) == {"eager", "graph", "host"}
