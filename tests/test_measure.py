"""scripts/measure: pieces that fail, die or hang do not stop others, and finished pieces do not run again."""

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
    """Return a bench of scripts/measure that writes into a temporary folder."""
    return measure.Bench(tmp_path / "GPU", False, tmp_path / "out")


def read_journal(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Return the name and the status of each piece that ran, from pieces.csv."""
    with (folder / "pieces.csv").open(newline="") as file:
        return [(row["piece"], row["status"]) for row in csv.DictReader(file)]


def is_running(pattern: str) -> bool:
    """Return whether a process has a command line that matches ``pattern``."""
    return subprocess.run(["pgrep", "-f", pattern], capture_output=True).returncode == 0


def test_failed_dead_or_hung_pieces_do_not_stop_others(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 3)
    monkeypatch.setattr(measure, "LEAST", 0)
    pieces_to_run = [FAILS, GOOD, DIES, HANGS, LAST]
    start = time.monotonic()
    assert bench.measure(pieces_to_run, False, start + 100) == 1
    assert time.monotonic() - start < 20
    assert read_journal(bench.folder) == [
        ("fails", "failed with exit status 3"), ("good", "done"), ("dies", "died of SIGKILL"), ("hangs", "stopped"),
        ("last", "done"),
    ]  # fmt: skip
    assert not is_running("sleep 1001")
    printed = capsys.readouterr().out
    assert "how it was" in printed and (bench.folder / "logs/good.log").read_text() == "how it was\n"
    assert re.search(r"owed  hangs +0 of 1 \(stopped\) +1 s  Is hangs\?\n", printed)
    assert re.search(r"done  good +1 of 1 +1 s  Is good\?\n", printed)
    (archive,) = (tmp_path / "out").iterdir()
    with tarfile.open(archive) as file:
        assert {"GPU/good.csv", "GPU/last.csv", "GPU/pieces.csv", "GPU/logs/hangs.log"} <= set(file.getnames())

    # In the next run, finished pieces are skipped, and pieces that failed before come last.
    mended = plant_piece("dies", ROW)
    new_piece = plant_piece("new", ROW)
    assert bench.measure([FAILS, GOOD, mended, new_piece, LAST], False, time.monotonic() + 100) == 1
    assert read_journal(bench.folder)[5:] == [("new", "done"), ("fails", "failed with exit status 3"), ("dies", "done")]
    assert bench.measure([GOOD, mended], False, time.monotonic() + 100) == 0
    assert bench.measure([GOOD], True, time.monotonic() + 100) == 0  # a piece asked for by name runs again
    assert [name for name, _ in read_journal(bench.folder)[8:]] == ["good"]


def test_begins_no_piece_when_little_time_is_left(bench, capsys):
    assert bench.measure([GOOD, LAST], False, time.monotonic() + measure.LEAST - 1) == 0
    assert "2 pieces were not begun" in capsys.readouterr().out
    assert not (bench.folder / "pieces.csv").exists()


def test_piece_waits_for_the_piece_it_needs(bench, capsys):
    waiting = dataclasses.replace(LAST, after=GOOD)
    assert bench.measure([waiting], False, time.monotonic() + 100) == 0
    assert "it needs the results of good" in capsys.readouterr().out and not (bench.folder / "pieces.csv").exists()
    assert bench.measure([GOOD, waiting], False, time.monotonic() + 100) == 0
    assert read_journal(bench.folder) == [("good", "done"), ("last", "done")]


def test_piece_receives_its_time(bench, monkeypatch):
    reports_time = plant_piece("reports_time", f"print('{{seconds}}', '{{minutes}}'); {ROW}")
    bench.measure([reports_time], False, time.monotonic() + 40)
    seconds, minutes = (bench.folder / "logs/reports_time.log").read_text().split()
    # A piece may begin measurements in three quarters of the 40 seconds that are left.
    assert int(seconds) in (28, 29, 30) and float(minutes) == pytest.approx(int(seconds) / 60, abs=0.02)


DRIVER = """
import pathlib, sys, time
sys.path.insert(0, "{root}")
from tests.planted_pieces import GOOD, LAST, ROW, measure, plant_piece
slow = plant_piece("slow", ROW + "; time.sleep(float(os.environ['PAUSE'])); " + ROW, of=2)
sys.exit(measure.Bench(pathlib.Path("{folder}/GPU"), False).measure([GOOD, slow, LAST], False, time.monotonic() + 100))
"""


def test_killed_run_resumes(tmp_path):
    """SIGKILL leaves no process behind, no row unwritten, and no lock."""
    command = [sys.executable, "-c", DRIVER.format(root=ROOT, folder=tmp_path)]
    killed_run = subprocess.Popen(command, env=os.environ | {"PAUSE": "1002"}, stdout=subprocess.PIPE, text=True)
    slow = tmp_path / "GPU/slow.csv"
    while not slow.exists() or not slow.read_text():
        assert killed_run.poll() is None
        time.sleep(0.05)
    concurrent_run = subprocess.run(command, env=os.environ | {"PAUSE": "0"}, capture_output=True, text=True)
    assert concurrent_run.returncode == 2 and "another measurement writes to" in concurrent_run.stderr
    killed_run.kill()
    killed_run.communicate()
    for _ in range(100):
        if not is_running("slow.csv"):
            break
        time.sleep(0.05)
    assert not is_running("slow.csv")
    assert subprocess.run(command, env=os.environ | {"PAUSE": "0"}, capture_output=True).returncode == 0
    assert read_journal(tmp_path / "GPU") == [("good", "done"), ("slow", "done"), ("last", "done")]
    assert (tmp_path / "GPU/good.csv").read_text() == "1\n"


def test_terminated_run_stops_its_piece(tmp_path):
    command = [sys.executable, "-c", DRIVER.format(root=ROOT, folder=tmp_path)]
    run = subprocess.Popen(command, env=os.environ | {"PAUSE": "1003"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "GPU/slow.csv").exists():
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130 and b"interrupted" in errors and not is_running("slow.csv")


def test_pieces_name_existing_files_and_options(tmp_path):
    names = [piece.name for piece in PIECES]
    assert len(names) == len(set(names))
    assert set(SWEEPS) <= set(names)
    readme = (ROOT / "perf/README.md").read_text()
    for piece in PIECES:
        assert f"`{piece.name}`" in readme or piece.name.startswith("right-rest-"), piece.name
        for command in (piece.command, piece.rehearsal):
            words = [word.format(out=tmp_path, gpu="GPU", seconds=9, minutes=0.15) for word in shlex.split(command)]
            if "run" in words:
                options = cli.parse(words[words.index("run") :])
                assert options.sweep == piece.name and options.since == "" and options.minutes == 0.15
            assert all(pathlib.Path(ROOT, word).exists() for word in words if word.startswith(("tests/", "scripts/")))
            if "tune" in words:
                parser = argparse.ArgumentParser()
                tune.add_parser(parser.add_subparsers(), make_problem_parser())
                options = parser.parse_args(words[words.index("tune") :])
                assert not options.hidden and options.budget == (5 if options.rehearse else 9)
        done, total = piece.count_done(tmp_path, False)
        assert done == 0 < total


def test_cases_with_a_row_count_as_done(tmp_path, monkeypatch):
    gpu, cases = tmp_path / "GPU", (Case("fp16", 8, 1, 1), Case("fp16", 8, 2, 1))
    sweep = dataclasses.replace(SWEEPS["t1"], cases=cases, providers=(), modes=("eager",))
    monkeypatch.setitem(SWEEPS, "t1", sweep)
    (piece,) = measure.choose_pieces(PIECES, ["t1"])
    for number, case in enumerate(cases):
        assert piece.count_done(gpu, False) == (number, 2)
        report = TimingsCsv(gpu / "t1-GPU.csv", "cpu")
        report.add(case.make_row("torch.nn.GRU", "eager", "warm"))
    assert piece.count_done(gpu, False) == (2, 2)


def test_test_that_did_not_end_is_not_done():
    (piece,) = measure.choose_pieces(PIECES, ["right"])
    outcomes = "passed", "failed", "skipped", "begun", "owed"
    assert piece.progress([{"test": outcome, "outcome": outcome} for outcome in outcomes], False) == (3, 5)


def test_pieces_are_chosen_by_name_or_prefix():
    def choose_names(*wanted):
        return [piece.name for piece in measure.choose_pieces(PIECES, list(wanted))]

    assert choose_names("heart") == ["heart"]
    assert choose_names("t1-cold", "right-rest") == [
        "t1-cold",
        *(f"right-rest-{i}" for i in range(1, pieces.SHARDS + 1)),
    ]
    assert choose_names("sanitize") == ["sanitize-memcheck", "sanitize-racecheck"]
    with pytest.raises(SystemExit, match="no piece 'hart', only right, heart"):
        choose_names("hart")


def test_tells_what_can_be_done_without_a_gpu(capsys):
    with pytest.raises(SystemExit):
        measure.main([])
    assert "--rehearse" in capsys.readouterr().err
    assert measure.main(["--list"]) == 0
    assert re.search(r"NVIDIA-H200\n  \w+  right", capsys.readouterr().out)
