"""How long is one hop of the state between programs, by each hand-over, with no GRU around it?

A launch of many hops and one of an eighth of them are timed, each with the clearing of its mailbox; a hop is the
difference of the two over the difference of their steps. So what a launch costs once is left out and what a step
costs is not: for "flag" that is also the clearing of a slot, for all the sum of what arrived (perf/hop_kernel.py).
The floor is the hop of one word between two programs. Programs that do not end with the known answer get no time.

    python -m perf.hop [--out perf/results] [--programs 8 32 64 128] [--kilobytes 1 4 16 64]
    TRITON_INTERPRET=1 python -m perf.hop --device interpreter     # a rehearsal: right or wrong, and no times
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from triton_gru.device import INTERPRETER, Device, find, interpreting
from triton_gru.tuning.timing import clock, graphed, quantiles, samples

from .hop_launch import LEAST_STEPS, ONE_WORD, Hop, Launcher, make_hops, obstacle
from .precompile import in_parallel
from .providers.ours import gave_up
from .record import Report, Row

SECONDS = 4.0  # for the rounds of a cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("perf/results"))
    parser.add_argument("--device", choices=("cuda", "interpreter"), default="cuda")
    parser.add_argument("--programs", type=int, nargs="+", default=[8, 32, 64, 128])
    parser.add_argument("--kilobytes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument(
        "--steps", type=int, default=1000, help="hops of a launch, or as many as the mailbox has room for"
    )
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    if options.device == "interpreter":
        if not interpreting():
            parser.error("--device interpreter needs TRITON_INTERPRET=1 in the environment")
        print("no GPU: a rehearsal in Triton's interpreter, of a tiny case", flush=True)
        device, described = torch.device("cpu"), INTERPRETER
        options.programs, options.kilobytes, options.steps = [4], [1], 3
    else:
        if options.steps < LEAST_STEPS:
            parser.error(f"--steps must be at least {LEAST_STEPS}")
        device = torch.device("cuda")
        described = find(device)
        # A hand-over that fails costs this much time a launch, of which there are a few.
        os.environ.setdefault("TRITON_GRU_TIMEOUT", "1")

    cells = {}
    for programs, kilobytes in [(2, ONE_WORD), *((p, k) for k in options.kilobytes for p in options.programs)]:
        name = f"P={programs} " + ("one word" if kilobytes == ONE_WORD else f"{kilobytes} KB")
        hops = make_hops(programs, kilobytes)
        if why := next(filter(None, (obstacle(hop, described) for hop in hops)), ""):
            print(f"{name}: skipped, {why}")
        else:
            cells[name] = hops
    if options.device == "cuda":
        in_parallel(functools.partial(compile_hop, hop) for hops in cells.values() for hop in hops)

    report = Report(options.out / f"hop-{options.device}.csv", device.type)
    measured = {}
    for number, (name, hops) in enumerate(cells.items(), 1):
        print(f"[{number}/{len(cells)}] {name}", flush=True)
        measured[name] = measure(hops, options.steps, options.rounds, device, described)
        for row in measured[name]:
            report.add(row)
            if row.status != "ok" or not row.n:
                print(f"    {row.provider} {row.status} {row.error}")
    for mode in ("eager", "graph") if options.device == "cuda" else ():
        print(table(measured, mode))
    print(f"wrote {report.path}")


@dataclass
class _Provider:
    """A variant in a mode: its row so far, and for each number of steps what launches that many and a call of it."""

    row: Row
    launchers: dict[int, Launcher]
    calls: dict[int, Callable]

    def gate(self) -> None:
        """Calls each once. The row's status is "ok" only if all end right."""
        status, error = "ok", ""
        try:
            if not all(launcher.is_right(self.calls[n]) for n, launcher in self.launchers.items()):
                status = "wrong"
        except Exception as failure:
            status, error = "failed", str(failure)
        self.row = dataclasses.replace(self.row, status=status, error=error)


def measure(hops: list[Hop], steps: int, rounds: int, device: torch.device, described: Device) -> list[Row]:
    """The rows of one cell: of each variant and mode the launches and the hop, timed in turns where it is right."""
    steps = min(steps, *(Launcher(hop, 1, device, described).mailbox.longest for hop in hops))
    fewer = steps // 8
    on_gpu = device.type == "cuda"
    providers = []
    for hop in hops:
        providers.append(_provider(hop, "eager", (1, fewer, steps) if on_gpu else (steps,), device, described))
        if on_gpu and providers[-1].row.status == "ok":
            providers.append(_provider(hop, "graph", (1, fewer, steps), device, described))
    if not on_gpu:
        return [provider.row for provider in providers]

    calls = {(p.row.provider, n): [call] for p in providers if p.row.status == "ok" for n, call in p.calls.items()}
    times = samples(calls, rounds, clock(device.type), SECONDS)
    error = gave_up()
    rows = []
    for provider in providers:
        if provider.row.status == "ok":
            provider.gate()
        if provider.row.status == "ok" and error:
            provider.row = dataclasses.replace(provider.row, status="failed", error=f"this or another: {error}")
        if provider.row.status == "ok":
            each = {n: times[provider.row.provider, n] for n in provider.calls}
            rows += [
                dataclasses.replace(provider.row, variant="launch", T=n, **quantiles(launches).columns())
                for n, launches in each.items()
            ]
            hop_ms = [(long - short) / (steps - fewer) for long, short in zip(each[steps], each[fewer])]
            provider.row = dataclasses.replace(provider.row, **quantiles(hop_ms).columns())
        rows.append(provider.row)
    return rows


def _provider(hop: Hop, mode: str, counts: tuple[int, ...], device: torch.device, described: Device) -> _Provider:
    """Made ready and called once."""
    name = hop.name if mode == "eager" else f"{hop.name}+graph"
    row = Row(
        provider=name, kernel="hop", config=str(hop.config), dtype="float16", T=counts[-1], B=hop.batch, H=hop.row,
        variant="hop", mode=mode,
    )  # fmt: skip
    launchers = {n: Launcher(hop, n, device, described) for n in counts}
    try:
        calls = {n: graphed(launcher)[0] if mode == "graph" else launcher for n, launcher in launchers.items()}
    except Exception as failure:
        return _Provider(dataclasses.replace(row, status="failed", error=str(failure)), launchers, {})
    provider = _Provider(row, launchers, calls)
    provider.gate()
    if spills := launchers[counts[-1]].spills:
        provider.row = dataclasses.replace(provider.row, config=f"{row.config} spills={spills}")
    return provider


def compile_hop(hop: Hop) -> None:
    device = torch.device("cuda")
    Launcher(hop, 1, device, find(device)).launch().compile()


def table(measured: dict[str, list[Row]], mode: str) -> str:
    """Median microseconds of a hop: a line a cell, a column a variant, and the fastest of the line."""
    hops = {
        cell: {row.base: row for row in rows if row.variant == "hop" and row.mode == mode}
        for cell, rows in measured.items()
    }
    names = list(dict.fromkeys(name for of_cell in hops.values() for name in of_cell))
    lines = ["".join([f"{mode + ', us a hop':18}", *(f"{name:>20}" for name in names), "  fastest"])]
    for cell, of_cell in hops.items():
        timed = {name: row.p50_ms for name, row in of_cell.items() if row.n}
        words = {name: row.status for name, row in of_cell.items()} | {n: f"{1000 * ms:.3f}" for n, ms in timed.items()}
        columns = "".join(f"{words.get(name, ''):>20}" for name in names)
        lines.append(f"{cell:18}{columns}  {min(timed, key=timed.get, default='none')}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
