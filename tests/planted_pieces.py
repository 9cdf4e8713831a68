"""Pieces for tests of scripts/measure that succeed, fail, die and hang. Loading them needs no torch."""

import importlib.machinery
import importlib.util
import pathlib
import shlex
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[1]

_loader = importlib.machinery.SourceFileLoader("measure", str(ROOT / "scripts/measure"))
measure = importlib.util.module_from_spec(importlib.util.spec_from_loader("measure", _loader))
_loader.exec_module(measure)


@dataclass(frozen=True)
class Planted:
    """A piece with the fields that scripts/measure reads. It is done when the file ``name``.csv has ``of`` lines."""

    name: str
    command: str
    of: int
    after: "Planted | None" = None
    seconds: int = 1

    @property
    def question(self) -> str:
        return f"Is {self.name}?"

    def count_done(self, out: pathlib.Path, rehearse: bool) -> tuple[int, int]:
        """Return how many lines the piece's file has, and how many it needs."""
        path = out / f"{self.name}.csv"
        return len(path.read_text().splitlines()) if path.exists() else 0, self.of


def plant_piece(name: str, program: str, of: int = 1) -> Planted:
    """Return a piece that runs ``program``, Python code in which ``file`` is the piece's open CSV."""
    program = f"import os, sys, time; file = open('{{out}}/{name}.csv', 'a', buffering=1); {program}"
    return Planted(name, f"python3 -c {shlex.quote(program)}", of)


# Program text that adds a line to the piece's file.
ROW = r"file.write('1\n')"
GOOD = plant_piece("good", f"print('how it was'); {ROW}")
FAILS = plant_piece("fails", "sys.exit(3)")
DIES = plant_piece("dies", "os.kill(os.getpid(), 9)")
HANGS = plant_piece("hangs", "os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '1001'); time.sleep(1000)")
LAST = plant_piece("last", ROW)
