"""Works through perf/QUEUE.md: turns a few minutes of a GPU into CSVs and a short report.

Everything is compiled first, in parallel. Then the commands run in the order they stand there, each with what is
left of the time: a sweep begins no case after that, another command is stopped. What a command prints goes to the
terminal and, with its exit status and seconds, to the folder given. The project need not be installed, and nothing is:
the Python that runs this must have torch, Triton, pandas and pytest.

    scripts/measure --minutes 25 [--entry 1 3] [--out perf/results]
    scripts/measure --rehearse      # without a GPU: every command in a small form, or listed
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import torch

from . import __main__ as cli
from . import report
from .precompile import compile_ahead
from .sweeps import SWEEPS

QUEUE = pathlib.Path(__file__).with_name("QUEUE.md")
_SWEEP, _TESTS = "-m perf run ", "-m pytest "
LEAST_SECONDS = 30  # left for a command to be begun
_SHARDS = 8  # processes that compile what tests launch, by running them


@dataclass(frozen=True)
class Command:
    """One of an entry's, as it stands in the queue; ``title`` is the entry's first sentence."""

    entry: int
    title: str
    line: str


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every command that was begun succeeded, else 1."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything")
    parser.add_argument("--entry", type=int, nargs="+", help="only these, by their number in the queue")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("perf/results"), help="folder of CSVs and logs"
    )
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    commands = [each for each in read(QUEUE.read_text()) if not options.entry or each.entry in options.entry]
    if not commands:
        parser.error("the queue has no such entry")
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("no GPU here: --rehearse goes through the motions without one")
    commands = [with_out(each, options.out) for each in commands]
    if options.rehearse:
        commands = [rehearsed(each) for each in commands]
    else:
        compile_all(commands, end)
    options.out.mkdir(parents=True, exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in options.out.rglob("*.csv")}
    outcomes = []
    for i, command in enumerate(commands):
        print(f"\n== entry {command.entry}: {command.title}\n   {command.line}", flush=True)
        of_entry = sum(each.entry == command.entry for each in commands[: i + 1])
        outcomes.append(run(command, options.out / f"entry-{command.entry}-{of_entry}.log", end))
        print(f"== {outcomes[-1]}", flush=True)
    changed = [path for path in options.out.rglob("*.csv") if before.get(path) != path.stat().st_mtime_ns]
    summary = options.out / "measured.md"
    summary.write_text(summarized(commands, outcomes, sorted(changed)))
    print(f"\n{summary.read_text()}\nwrote {summary}")
    return int(any(outcome.startswith("failed") for outcome in outcomes))


def read(text: str) -> list[Command]:
    """The queue's commands: lines indented below a numbered entry."""
    commands = []
    entry, title = 0, ""
    for line in text.splitlines():
        if numbered := re.match(r"(\d+)\. (.*?[.?:]|.*)(\s|$)", line):
            entry, title = int(numbered[1]), numbered[2]
        elif entry and line.startswith(" " * 7) and line.strip():
            commands.append(Command(entry, title, line.strip()))
    return commands


def with_out(command: Command, out: pathlib.Path) -> Command:
    """The command writing to this folder, in place of perf/results."""
    folder = shlex.quote(str(out))
    return dataclasses.replace(command, line=re.sub(r"(?<=[ =])perf/results\b", lambda match: folder, command.line))


def rehearsed(command: Command) -> Command:
    """What can be seen of it on a CPU: sweeps of tiny cases in the interpreter, tests collected, or nothing."""
    line = command.line
    if _SWEEP in line:
        line = f"TRITON_INTERPRET=1 {line} --rehearse"
    elif " tune " in line:
        line = "echo nothing to rehearse: in the interpreter it would take hours"
    elif re.search(r"-m perf\.(hop|stages)", line):
        line = f"TRITON_INTERPRET=1 {line} --device interpreter"
    elif _TESTS in line and "compute-sanitizer" not in line:
        line = f"TRITON_INTERPRET=1 {line} --collect-only -q"
    else:
        line = "echo no rehearsal of this one"
    return dataclasses.replace(command, line=line)


def compile_all(commands: list[Command], end: float) -> None:
    """What sweeps launch, and what tests do by running them once in several processes, whatever comes of it."""
    wanted = []
    for command in commands:
        if _SWEEP in command.line:
            sweep, providers = cli.chosen(cli.parse(shlex.split(command.line.split("-m perf ")[1])))
            wanted += [(case, providers) for case in sweep.cases]
    compile_ahead(wanted)
    for command in commands:
        if _TESTS in command.line and "compute-sanitizer" not in command.line:
            print(f"compiling what the tests of entry {command.entry} launch, in {_SHARDS} processes", flush=True)
            shards = [
                _start(f"TESTS_SHARD={i}/{_SHARDS} TRITON_GRU_TIMEOUT=60 {command.line}", subprocess.DEVNULL)
                for i in range(_SHARDS)
            ]
            latest = time.monotonic() + (end - time.monotonic()) / 3  # of what is left; the rest is for running them
            for shard in shards:
                _wait(shard, latest)


def run(command: Command, log: pathlib.Path, end: float) -> str:
    """Runs it until it ends or the time is over, and returns what became of it in a few words."""
    left = end - time.monotonic()
    if left < LEAST_SECONDS:
        return "not begun: the time is over"
    line = command.line
    if _SWEEP in line:
        line += f" --resume --minutes {left / 60 - 0.25:.2f}" + " --compiled" * ("--rehearse" not in line)
    start = time.monotonic()
    tee = f"set -o pipefail; ({line}) 2>&1 | tee {shlex.quote(str(log))}"
    status = _wait(_start(tee, None), end)
    seconds = time.monotonic() - start
    if status is None:
        return f"stopped after {seconds:.0f} s: the time was over"
    return f"done in {seconds:.0f} s" if status == 0 else f"failed with status {status} after {seconds:.0f} s"


def _start(line: str, output) -> subprocess.Popen:
    # "python3" is the Python that runs this.
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": ".", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        ["bash", "-c", line], env=environment, stdout=output, stderr=output, start_new_session=True
    )  # fmt: skip


def _wait(process: subprocess.Popen, end: float) -> int | None:
    """The exit status, or None if the process and its children had to be killed at the end of the time."""
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def summarized(commands: list[Command], outcomes: list[str], csvs: list[pathlib.Path]) -> str:
    """Markdown: what became of each command, and what the CSVs of sweeps say that were written."""
    lines = ["# Measured", "", "| entry | command | |", "|---|---|---|"]
    lines += [f"| {each.entry} | `{each.line}` | {outcome} |" for each, outcome in zip(commands, outcomes)]
    for path in csvs:
        if path.name.split("-")[0] in SWEEPS:
            lines += ["", f"## {path.name}", "", report.markdown([path])]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
