"""The queue of measurements: what is read from it, its rehearsal, the end of its time."""

import pathlib
import re
import shlex
import time
import types

import pytest

from perf import __main__ as cli
from perf import queue
from perf.queue import Command

from . import conftest

TEXT = """# Owed

Words, 3 of them.

1. Is this right? And more words
   over lines. 5 minutes.

       python3 -m pytest tests -m gpu -q

2. A sweep: of things.

       python3 -m perf run --sweep smoke --out perf/results
       PYTHONPATH=. echo done

10. The last one

        echo ten
"""


def test_commands_are_read_in_order():
    assert [(each.entry, each.title, each.line) for each in queue.read(TEXT)] == [
        (1, "Is this right?", "python3 -m pytest tests -m gpu -q"),
        (2, "A sweep:", "python3 -m perf run --sweep smoke --out perf/results"),
        (2, "A sweep:", "PYTHONPATH=. echo done"),
        (10, "The last one", "echo ten"),
    ]


def test_the_queue_names_what_there_is():
    """Every sweep can be parsed, every file of tests exists, and nothing is left out by a change of indentation."""
    text = queue.QUEUE.read_text()
    commands = queue.read(text)
    assert len(commands) == sum(line.startswith(" " * 7) for line in text.splitlines())
    assert sorted({each.entry for each in commands}) == [*range(1, 1 + len({each.entry for each in commands}))]
    for each in commands:
        if "-m perf run" in each.line:
            options = cli.parse([*shlex.split(each.line.split("-m perf ")[1]), "--rehearse"])
            sweep, providers = cli.chosen(options)
            assert sweep.cases and providers
            assert "--out perf/results" in each.line
        for path in re.findall(r"(?:tests|scripts)/\S+\.py", each.line):
            assert pathlib.Path(path).exists()


def test_results_go_where_they_are_to_go():
    command = queue.with_out(Command(1, "", "x --out perf/results/forms --seed 1"), pathlib.Path("a folder"))
    assert shlex.split(command.line) == ["x", "--out", "a folder/forms", "--seed", "1"]
    command = queue.with_out(Command(1, "", "DIR=perf/results/tables x perf/results/*.json"), pathlib.Path("there"))
    assert command.line == "DIR=there/tables x there/*.json"


@pytest.fixture
def queued(monkeypatch, tmp_path):
    def make(*lines):
        path = tmp_path / "QUEUE.md"
        path.write_text("".join(f"{i}. Entry {i}.\n\n       {line}\n\n" for i, line in enumerate(lines, 1)))
        monkeypatch.setattr(queue, "QUEUE", path)
        monkeypatch.setattr(queue, "rehearsed", lambda command: command)
        return ["--rehearse", "--out", str(tmp_path / "out")]

    return make


def test_commands_run_in_order_and_a_failure_stops_nothing(queued, tmp_path, capfd):
    assert queue.main(queued("echo one", "echo no >&2; exit 3", "echo three")) == 1
    out = capfd.readouterr().out
    assert re.findall(r"^(?:one|no|three)$", out, re.MULTILINE) == ["one", "no", "three"]
    summary = (tmp_path / "out/measured.md").read_text()
    assert "| 2 | `echo no >&2; exit 3` | failed with status 3 after 0 s |" in summary
    assert [(tmp_path / f"out/entry-{i}-1.log").read_text() for i in (1, 2, 3)] == ["one\n", "no\n", "three\n"]
    assert queue.main([*queued("echo one", "exit 3"), "--entry", "1"]) == 0


def test_a_command_is_stopped_with_its_children_at_the_end_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "LEAST_SECONDS", 0.1)
    log, alive = tmp_path / "log", tmp_path / "alive"
    start = time.monotonic()
    outcome = queue.run(Command(1, "", f"echo begun; (sleep 2; touch {alive}) & sleep 60"), log, start + 1)
    assert outcome.startswith("stopped")
    assert time.monotonic() - start < 5
    assert log.read_text() == "begun\n"
    time.sleep(2)
    assert not alive.exists()


def test_nothing_is_begun_when_hardly_any_time_is_left(tmp_path):
    assert queue.run(Command(1, "", f"touch {tmp_path}/x"), tmp_path / "log", time.monotonic() + 10).startswith(
        "not begun"
    )
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_given_the_time_that_is_left(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(queue, "_start", lambda line, output: lines.append(line))
    monkeypatch.setattr(queue, "_wait", lambda process, end: 0)
    queue.run(Command(1, "", "python3 -m perf run --sweep core"), tmp_path / "log", time.monotonic() + 300)
    assert re.search(r"--sweep core --resume --minutes 4\.7\d --compiled\)", lines[0])


def test_everything_is_compiled_first(monkeypatch):
    """Sweeps' cases in one go; tests by running them in shards; the sanitizer's tests not at all."""
    wanted, started = [], []
    monkeypatch.setattr(queue, "compile_ahead", wanted.extend)
    monkeypatch.setattr(queue, "_start", lambda line, output: started.append(line))
    monkeypatch.setattr(queue, "_wait", lambda process, end: 0)
    monkeypatch.setattr(cli, "_device", lambda options: "cuda")
    lines = [
        "python3 -m perf run --sweep core --slice 1 --out x", "python3 -m perf.hop", "python3 -m pytest tests -m gpu",
        "python3 -m perf run --sweep large --provider triton_gru.step", "compute-sanitizer python3 -m pytest tests",
    ]  # fmt: skip
    queue.compile_all([Command(1, "", line) for line in lines], time.monotonic() + 10)
    core, large = cli.sweeps.SWEEPS["core"], cli.sweeps.SWEEPS["large"]
    assert wanted == [(case, core.providers) for case in core.slices[0].cases] + [
        (case, ("triton_gru.step",)) for case in large.cases
    ]
    assert len(started) == 8
    assert all(f"TESTS_SHARD={i}/8 " in line and "-m pytest tests -m gpu" in line for i, line in enumerate(started))


def test_the_rehearsal_of_real_commands(tmp_path, monkeypatch, capfd):
    lines = ["python3 -m perf run --sweep smoke --provider handwritten --out perf/results", "python3 scripts/demo.py"]
    path = tmp_path / "QUEUE.md"
    path.write_text("".join(f"{i}. Entry {i}.\n\n       {line}\n\n" for i, line in enumerate(lines, 1)))
    monkeypatch.setattr(queue, "QUEUE", path)
    assert queue.main(["--rehearse", "--out", str(tmp_path / "out")]) == 0
    summary = (tmp_path / "out/measured.md").read_text()
    assert "## smoke-cpu.csv" in summary
    assert "| torch.nn.GRU |" in summary
    assert "no rehearsal" in capfd.readouterr().out


def test_without_a_gpu_it_says_what_can_be_done(capsys):
    with pytest.raises(SystemExit):
        queue.main([])
    assert "--rehearse" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        queue.main(["--rehearse", "--entry", "99"])


def test_tests_are_shared_by_shards(monkeypatch):
    config = types.SimpleNamespace(hook=types.SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items)))
    everything, taken = [*range(10)], []
    for i in range(3):
        monkeypatch.setenv("TESTS_SHARD", f"{i}/3")
        items, left_out = [*everything], []
        conftest.share(config, items)
        assert sorted(items + left_out) == everything
        taken += items
    assert sorted(taken) == everything
