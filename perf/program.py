"""A program that measures cells one after the other into a CSV, and goes on where that ends."""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

from triton_gru.plan.device import interpreting

from .measure import DeviceLost
from .providers.ours import is_lost
from .record import BEGUN, Report, Row, cell, machine_name, statuses
from .run import measure_cells


@dataclass(frozen=True)
class Program:
    """A program's cells, and how each is measured.

    Attributes:
        name: of its CSV.
        key: the columns that tell a cell's rows from those of others.
        cells: for a rehearsal on a CPU, or for a GPU: what is measured, the most telling first.
        row_of: a row with the cell's key.
        compile: compiles what cells need on a GPU.
        measure: measures a cell on a device; on "cpu" only whether it is right.
        told: what is printed of a cell's rows.
    """

    name: str
    key: tuple[str, ...]
    cells: Callable[[bool], list]
    row_of: Callable[..., Row]
    compile: Callable[[list], None]
    measure: Callable[..., list[Row]]
    told: Callable[[list[Row]], str]

    def owed(self, rows: list[dict[str, str]], rehearse: bool) -> list[tuple[object, Row]]:
        """Return the cells that ``rows`` has no results of, and a row of each.

        A cell that was begun and has no end comes last: it may have hung, or taken the process with it.
        """
        there = statuses(rows, self.key)
        every = [(each, self.row_of(each)) for each in self.cells(rehearse)]
        todo = [(each, row) for each, row in every if there.get(cell(row, self.key), BEGUN) == BEGUN]
        return sorted(todo, key=lambda item: cell(item[1], self.key) in there)

    def main(self, description: str, arguments: list[str] | None = None) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(description=description, formatter_class=raw)
        parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/perf"), help="folder of the CSV")
        parser.add_argument("--rehearse", action="store_true", help="a small form, on a CPU")
        options = parser.parse_args(arguments)
        if options.rehearse and not interpreting():
            parser.error("--rehearse needs TRITON_INTERPRET=1 in the environment")
        device = "cpu" if options.rehearse else "cuda"
        report = Report(options.out / f"{self.name}-{machine_name(device)}.csv", device)
        todo = self.owed(report.rows(), options.rehearse)
        if not options.rehearse:
            self.compile([each for each, _ in todo])

        def measure(each) -> list[Row]:
            rows = self.measure(each, device)
            if is_lost():
                raise DeviceLost(rows)
            return rows

        try:
            measure_cells(report, [(each, row, functools.partial(measure, each)) for each, row in todo], self.told)
        except DeviceLost:
            sys.exit("the GPU answers this process no more: the same command goes on in a new one")
