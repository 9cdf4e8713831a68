"""How long is one hop of the state between programs, by each hand-over, with no GRU around it?

A launch of many hops and one of an eighth of them are timed in CUDA graphs, each with the clearing of its mailbox. A
hop is the difference of the two over the difference of their steps, so what a launch costs once is left out, and what a
step costs is not: for "flag" that is also the clearing of a slot, for all the sum of what arrived (hop_kernel.py). The
floor is the hop of one word between two programs. Programs that do not end with the known answer get no time.

    python -m perf.hop [--out build/perf]                # goes on where its CSV ends
    TRITON_INTERPRET=1 python -m perf.hop --rehearse     # of a tiny case: right or wrong, and no times
"""

import functools
import os
from collections.abc import Callable

import torch

from triton_gru.plan.device import INTERPRETER, Device, find
from triton_gru.tuning.timing import clock, graphed, samples

from .hop_launch import ONE_WORD, Hop, Launcher, make_hops, obstacle
from .precompile import in_parallel
from .program import Program, told
from .providers.ours import gave_up
from .record import Row, timed

PROGRAMS, KILOBYTES = (64, 32, 128, 8), (1, 4, 16, 64)
STEPS = 1000  # hops of a launch, or as many as the mailbox has room for
ROUNDS, SECONDS = 50, 4.0  # of a cell


def cells(rehearse: bool) -> list[list[Hop]]:
    """Return what is measured together: each hand-over's hop of one tile."""
    tiles = [(4, 1)] if rehearse else [(p, k) for p in PROGRAMS for k in KILOBYTES if p <= 64 * k]  # a row's elements
    return [make_hops(*tile) for tile in [(2, ONE_WORD), *tiles]]


def configs_in(rows: list[dict[str, str]]) -> set[str]:
    return {row["config"].split(" spills=")[0] for row in rows}


def measure_cell(hops: list[Hop], device: str) -> list[Row]:
    described = INTERPRETER if device == "cpu" else find(torch.device(device))
    # A hand-over that fails costs this much time a launch, of which there are a few.
    os.environ.setdefault("TRITON_GRU_TIMEOUT", "1")
    return measure(hops, 3 if device == "cpu" else STEPS, ROUNDS, torch.device(device), described)


def measure(hops: list[Hop], steps: int, rounds: int, device: torch.device, described: Device) -> list[Row]:
    """Return the rows of one cell: each hop timed in turns with the others, if it is right before and after."""
    why = next(filter(None, (obstacle(hop, described) for hop in hops)), "")
    about = {"kernel": "hop", "dtype": "float16", "variant": "hop", "mode": "graph", "error": why}
    about |= {"status": "unavailable"} if why else {}
    rows = [Row(provider=hop.name, config=str(hop.config), B=hop.batch, H=hop.row, **about) for hop in hops]
    if why:
        return rows
    steps = min(steps, *(Launcher(hop, 1, device, described).mailbox.longest for hop in hops))
    fewer, calls = max(1, steps // 8), {}
    launchers = {hop.name: [Launcher(hop, n, device, described) for n in (fewer, steps)] for hop in hops}
    for row in rows:
        row.T, both = steps, launchers[row.provider]
        judge(row, both, lambda launcher: launcher)
        if row.status == "ok" and device.type == "cuda":
            calls[row.provider] = judge(row, both, lambda launcher: graphed(launcher)[0])
            row.config += f" spills={both[1].spills}" * bool(both[1].spills)
    right = [row.provider for row in rows if row.status == "ok" and calls]
    times = samples({(x, i): [calls[x][i]] for x in right for i in (0, 1)}, rounds, clock(device.type), SECONDS)
    error = gave_up()
    for i, row in enumerate(rows):
        if row.provider in right:
            judge(row, launchers[row.provider], dict(zip(launchers[row.provider], calls[row.provider])).get)
        if row.status == "ok" and error:
            row.status, row.error = "failed", f"this or another: {error}"
        if row.status == "ok" and row.provider in right:
            both = zip(times[row.provider, 0], times[row.provider, 1])
            rows[i] = timed(row, [(long - short) / (steps - fewer) for short, long in both])
    return rows


def judge(row: Row, launchers: list[Launcher], call_of: Callable[[Launcher], Callable]) -> list[Callable]:
    """Return a call of each launcher, made once; the row says whether all end right."""
    calls = []
    try:
        calls = [call_of(each) for each in launchers]
        if not all(launcher.is_right(call) for launcher, call in zip(launchers, calls)):
            row.status = "wrong"
    except Exception as failure:
        row.status, row.error = "failed", str(failure)
    return calls


def compile_cells(todo: list[list[Hop]]) -> None:
    described = find(torch.device("cuda"))
    in_parallel(functools.partial(compile_hop, hop) for hops in todo for hop in hops if not obstacle(hop, described))


def compile_hop(hop: Hop) -> None:
    device = torch.device("cuda")
    Launcher(hop, 1, device, find(device)).launch().compile()


PROGRAM = Program("hop", cells, lambda hops: str(hops[0].config), configs_in, compile_cells, measure_cell, told)

if __name__ == "__main__":
    PROGRAM.main(__doc__)
