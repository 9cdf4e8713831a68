"""A program that measures cells one after the other into a CSV, and goes on where that ends."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from triton_gru.plan.device import interpreting

from .providers.ours import is_lost
from .record import BEGUN, Report, Row, machine_name


@dataclass(frozen=True)
class Program:
    """What differs from one such program to the other.

    Attributes:
        name: of its CSV.
        cells: for a rehearsal on a CPU, or for a GPU: what is measured, the most telling first.
        key, keys_in: what tells a cell from others, and the keys of the cells that rows are of.
        compile: compiles what cells need on a GPU.
        measure: measures a cell on a device; on "cpu" only whether it is right.
        told: what is printed of a cell's rows.
    """

    name: str
    cells: Callable[[bool], list]
    key: Callable[..., Hashable]
    keys_in: Callable[[list[dict[str, str]]], set]
    compile: Callable[[list], None]
    measure: Callable[..., list[Row]]
    told: Callable[[list[Row]], str]

    def progress(self, rows: list[dict[str, str]], rehearse: bool) -> tuple[int, int]:
        """Return of how many cells there are rows, and how many cells there are."""
        keys, there = [self.key(each) for each in self.cells(rehearse)], self._keys_in(rows)
        return sum(key in there for key in keys), len(keys)

    def _keys_in(self, rows: list[dict[str, str]]) -> set:
        return self.keys_in([row for row in rows if row["status"] != BEGUN])

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
        rows = report.rows()
        there, begun = self._keys_in(rows), {row["error"] for row in rows if row["status"] == BEGUN}
        todo = [each for each in self.cells(options.rehearse) if self.key(each) not in there]
        todo.sort(key=lambda each: str(self.key(each)) in begun)  # what took the process with it, or hung, comes last
        if not options.rehearse:
            self.compile(todo)
        for number, each in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {each}", flush=True)
            report.add(Row(provider=self.name, status=BEGUN, error=str(self.key(each))))
            rows = self.measure(each, device)
            report.add_all(rows)
            print(self.told(rows), flush=True)
            if is_lost():
                sys.exit("the GPU answers this process no more: the same command goes on in a new one")
        print(f"wrote {report.path}")


def told(rows: list[Row]) -> str:
    """Return a line for each row: its time, or why it has none."""
    return "\n".join(
        f"    {row.provider:16}{row.mode:16}{f'{row.p50_ms:.4g} ms' if row.n else f'{row.status} {row.error}'}"
        for row in rows
    )
