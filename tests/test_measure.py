"""scripts/measure: pieces that fail, die or hang cost themselves alone; what is done is not done again."""

import argparse
import csv
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from perf import __main__ as cli
from perf.case import Case
from perf.record import TimingsCsv
from perf.sweeps import SWEEPS
from triton_gru.commands import tune
from triton_gru.commands.arguments import make_problem_parser

from .planted_pieces import DIES, FAILS, GOOD, HANGS, LAST, ROOT, ROW, measure, plant_piece

sys.path.insert(0, str(ROOT / "scripts"))

import pieces
from pieces import PIECES


@pytest.fixture
def bench(tmp_path):
    return measure.Bench(tmp_path / "GPU", False, tmp_path / "out")


def journal(folder: pathlib.Path) -> list[tuple[str, str]]:
    with (folder / "pieces.csv").open(newline="") as file:
        return [(row["piece"], row["status"]) for row in csv.DictReader(file)]


def running(words: str) -> bool:
    return subprocess.run(["pgrep", "-f", words], capture_output=True).returncode == 0


def test_what_fails_dies_or_hangs_costs_itself_alone(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 3)
    monkeypatch.setattr(measure, "LEAST", 0)
    everything = [FAILS, GOOD, DIES, HANGS, LAST]
    start = time.monotonic()
    assert bench.measure(everything, False, start + 100) == 1
    assert time.monotonic() - start < 20
    assert journal(bench.folder) == [
        ("fails", "failed with exit status 3"), ("good", "done"), ("dies", "died of SIGKILL"), ("hangs", "stopped"),
        ("last", "done"),
    ]  # fmt: skip
    assert not running("sleep 1001")
    said = capsys.readouterr().out
    assert "how it was" in said and (bench.folder / "logs/good.log").read_text() == "how it was\n"
    assert re.search(r"owed  hangs +0 of 1 \(stopped\) +1 s  Is hangs\?\n", said)
    assert re.search(r"done  good +1 of 1 +1 s  Is good\?\n", said)
    (archive,) = (tmp_path / "out").iterdir()
    with tarfile.open(archive) as file:
        assert {"GPU/good.csv", "GPU/last.csv", "GPU/pieces.csv", "GPU/logs/hangs.log"} <= set(file.getnames())

    # Again: nothing that is done, and first what has not failed before.
    mended = plant_piece("dies", ROW)
    new = plant_piece("new", ROW)
    assert bench.measure([FAILS, GOOD, mended, new, LAST], False, time.monotonic() + 100) == 1
    assert journal(bench.folder)[5:] == [("new", "done"), ("fails", "failed with exit status 3"), ("dies", "done")]
    assert bench.measure([GOOD, mended], False, time.monotonic() + 100) == 0
    assert bench.measure([GOOD], True, time.monotonic() + 100) == 0  # asked for by name
    assert [name for name, _ in journal(bench.folder)[8:]] == ["good"]


def test_nothing_is_begun_when_hardly_any_time_is_left(bench, capsys):
    assert bench.measure([GOOD, LAST], False, time.monotonic() + measure.LEAST - 1) == 0
    assert "2 pieces were not begun" in capsys.readouterr().out
    assert not (bench.folder / "pieces.csv").exists()


def test_a_piece_waits_for_the_one_whose_results_it_needs(bench, capsys):
    then = dataclasses.replace(LAST, after=GOOD)
    assert bench.measure([then], False, time.monotonic() + 100) == 0
    assert "it means nothing before good" in capsys.readouterr().out and not (bench.folder / "pieces.csv").exists()
    assert bench.measure([GOOD, then], False, time.monotonic() + 100) == 0
    assert journal(bench.folder) == [("good", "done"), ("last", "done")]


def test_a_piece_is_told_its_time(bench, monkeypatch):
    told = plant_piece("told", f"print('{{seconds}}', '{{minutes}}'); {ROW}")
    bench.measure([told], False, time.monotonic() + 40)
    seconds, minutes = (bench.folder / "logs/told.log").read_text().split()
    assert int(seconds) in (28, 29, 30) and float(minutes) == pytest.approx(int(seconds) / 60, abs=0.02)


DRIVER = """
import pathlib, sys, time
sys.path.insert(0, "{root}")
from tests.planted_pieces import GOOD, LAST, ROW, measure, plant_piece
slow = plant_piece("slow", ROW + "; time.sleep(float(os.environ['PAUSE'])); " + ROW, of=2)
sys.exit(measure.Bench(pathlib.Path("{folder}/GPU"), False).measure([GOOD, slow, LAST], False, time.monotonic() + 100))
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    """SIGKILL leaves no process behind, no row unwritten, and nothing to be unlocked."""
    command = [sys.executable, "-c", DRIVER.format(root=ROOT, folder=tmp_path)]
    first = subprocess.Popen(command, env=os.environ | {"PAUSE": "1002"}, stdout=subprocess.PIPE, text=True)
    slow = tmp_path / "GPU/slow.csv"
    while not slow.exists() or not slow.read_text():
        assert first.poll() is None
        time.sleep(0.05)
    beside = subprocess.run(command, env=os.environ | {"PAUSE": "0"}, capture_output=True, text=True)
    assert beside.returncode == 2 and "another measurement writes to" in beside.stderr
    first.kill()
    first.communicate()
    for _ in range(100):
        if not running("slow.csv"):
            break
        time.sleep(0.05)
    assert not running("slow.csv")
    assert subprocess.run(command, env=os.environ | {"PAUSE": "0"}, capture_output=True).returncode == 0
    assert journal(tmp_path / "GPU") == [("good", "done"), ("slow", "done"), ("last", "done")]
    assert (tmp_path / "GPU/good.csv").read_text() == "1\n"


def test_a_terminated_run_stops_its_piece_and_says_so(tmp_path):
    command = [sys.executable, "-c", DRIVER.format(root=ROOT, folder=tmp_path)]
    run = subprocess.Popen(command, env=os.environ | {"PAUSE": "1003"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "GPU/slow.csv").exists():
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130 and b"interrupted" in errors and not running("slow.csv")


def test_the_pieces_name_what_there_is(tmp_path):
    names = [each.name for each in PIECES]
    assert len(names) == len(set(names))
    assert set(SWEEPS) <= set(names)
    explained = (ROOT / "perf/README.md").read_text()
    for each in PIECES:
        assert f"`{each.name}`" in explained or each.name.startswith("right-rest-"), each.name
        for command in (each.command, each.rehearsal):
            words = [w.format(out=tmp_path, gpu="GPU", seconds=9, minutes=0.15) for w in shlex.split(command)]
            if "run" in words:
                options = cli.parse(words[words.index("run") :])
                assert options.sweep == each.name and options.resume and options.minutes == 0.15
            assert all(pathlib.Path(ROOT, word).exists() for word in words if word.startswith(("tests/", "scripts/")))
            if "tune" in words:
                parser = argparse.ArgumentParser()
                tune.add_parser(parser.add_subparsers(), make_problem_parser())
                options = parser.parse_args(words[words.index("tune") :])
                assert not options.hidden and options.budget == (5 if options.rehearse else 9)
        done, of = each.count_done(tmp_path, False)
        assert done == 0 < of


def test_rows_of_every_schema_count_as_done(tmp_path, monkeypatch):
    """The sweep has two cases: one is in a file of schema 3, the other in today's."""
    gpu, cases = tmp_path / "GPU", (Case("fp16", 8, 1, 1), Case("fp16", 8, 2, 1))
    sweep = dataclasses.replace(SWEEPS["t1"], cases=cases, providers=(), modes=("eager",))
    monkeypatch.setitem(SWEEPS, "t1", sweep)
    (piece,) = measure.chosen(PIECES, ["t1"])
    for number, case in enumerate(cases):
        assert piece.count_done(gpu, False) == (number, 2)
        report = TimingsCsv(gpu / "t1-GPU.csv", "cpu")
        report.add(case.row("torch.nn.GRU", "eager", "warm"))
        if number == 0:
            report.path.rename(gpu / "t1-GPU.csv")
    assert piece.count_done(gpu, False) == (2, 2)


def test_pieces_are_chosen_by_name_or_by_its_beginning():
    def names(*wanted):
        return [each.name for each in measure.chosen(PIECES, list(wanted))]

    assert names("heart") == ["heart"]
    assert names("t1-cold", "right-rest") == ["t1-cold", *(f"right-rest-{i}" for i in range(1, pieces.SHARDS + 1))]
    assert names("sanitize") == ["sanitize-memcheck", "sanitize-racecheck"]
    with pytest.raises(SystemExit, match="no piece 'hart', only right, heart"):
        names("hart")


def test_without_a_gpu_it_says_what_can_be_done(capsys):
    with pytest.raises(SystemExit):
        measure.main([])
    assert "--rehearse" in capsys.readouterr().err
    assert measure.main(["--list"]) == 0
    assert re.search(r"NVIDIA-H200\n  \w+  right", capsys.readouterr().out)
