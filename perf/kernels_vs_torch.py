"""How fast are the kernels against torch.nn.GRU? One layer, I = H, eager against eager and graph against graph.

All in eval() under inference_mode, in the same precision, in one run. A provider that is further from float64 than
the library's own bound gets no time, and one that cannot serve a cell is a row that says why. Printed is, for each
of ours and mode by mode, its time over that of the faster of torch.nn.GRU and torch.nn.GRU+graph: below 1 is faster.

    python -m perf.kernels_vs_torch [--out perf/results] [--kernel auto grid --plain --handover tag counter]
    python -m perf.kernels_vs_torch --device cpu --hidden 16 --batch 2 --steps 16 --rounds 3     # a rehearsal
"""

import argparse
import dataclasses
import pathlib
import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from triton_gru import watchdog
from triton_gru.accuracy import PRECISIONS, bound, exact, set_precision
from triton_gru.plan import KERNELS

from .record import Report, Row
from .timing import graphed, interleaved
from .variants import Cell, Variant, compile_ahead

TORCHS, ROTATED = "torch.nn.GRU", 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("perf/results"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--kernel", choices=("auto", *KERNELS), nargs="+", default=["auto", *KERNELS])
    parser.add_argument("--plain", action="store_true", help="grid in its form without PTX, too")
    parser.add_argument("--handover", choices=("tag", "counter"), nargs="+", default=[], help="grid with these, too")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp16", "tf32"])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 400, 512, 1024, 2048])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=2.0, help="for a cell's rounds; a few are made anyway")
    options = parser.parse_args()
    if options.device == "cpu":
        print("no GPU: a rehearsal on the CPU, where kernels run under TRITON_INTERPRET=1 or not at all", flush=True)
    # Parameters that are not flattened would cost torch.nn.GRU a copy on every call.
    warnings.filterwarnings("error", message="RNN module weights are not part of single contiguous chunk")
    variants = [Variant(kernel) for kernel in options.kernel]
    variants += [Variant("grid", isa="plain")] * options.plain
    variants += [Variant("grid", handover=handover) for handover in options.handover]
    cells = [Cell(p, h, b) for p in options.precision for h in options.hidden for b in options.batch]
    if options.device == "cuda":
        compile_ahead(cells, variants, options.device)
    report = Report(options.out / f"kernels_vs_torch-{options.device}.csv", options.device)
    for number, cell in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {cell.precision} H={cell.hidden} B={cell.batch}", flush=True)
        rows = measure(cell, variants, options)
        for row in rows:
            report.add(row)
        print(summary(rows), flush=True)
    print(f"wrote {report.path}")


def measure(cell: Cell, variants: list[Variant], options) -> list[Row]:
    """One row a provider and mode, torch's first, timed in turns where it is right."""
    on_gpu = options.device == "cuda"
    dtype = set_precision(cell.precision)
    theirs = nn.GRU(cell.hidden, cell.hidden, device=options.device, dtype=dtype).eval()
    shape = options.steps, cell.batch, cell.hidden
    inputs = [torch.randn(shape, device=options.device).to(dtype) for _ in range(ROTATED)]
    blank = Row(
        dtype=str(dtype)[6:], precision=PRECISIONS[cell.precision][1], T=options.steps, B=cell.batch, I=cell.hidden,
        H=cell.hidden, l2=f"{ROTATED} inputs rotated",
    )  # fmt: skip
    with torch.inference_mode():
        expected = exact(theirs, inputs[0], None)[0]

        def error(call: Callable[[Tensor], Tensor]) -> float:
            return (call(inputs[0]).double().cpu() - expected).abs().max().item()

        row = dataclasses.replace(blank, provider=TORCHS, kernel="cudnn" if on_gpu else "torch")
        functions = {TORCHS: lambda x: theirs(x)[0]}
        rows = [dataclasses.replace(row, max_abs_err=error(functions[TORCHS]))]
        allowed = bound(rows[0].max_abs_err, cell.precision)
        for variant in variants:
            row = dataclasses.replace(blank, provider=variant.name, kernel=variant.backend)
            try:
                gru = cell.module(variant, options.device)
                gru.load_state_dict(theirs.state_dict())
                plan = variant.plan(gru, inputs[0])
                row = dataclasses.replace(
                    row, kernel=plan.kernel, config=str(plan.config or ""), config_source=plan.source
                )
                functions[variant.name] = variant.call(gru, plan)
                row.max_abs_err = error(functions[variant.name])
                watchdog.check()
                row.status = "ok" if row.max_abs_err <= allowed else "wrong"
            except Exception as failure:
                row.status, row.error = "failed", str(failure)
            rows.append(row)
        calls = {
            row.provider: [lambda f=functions[row.provider], x=x: f(x) for x in inputs]
            for row in rows
            if row.status == "ok"
        }
        for eager in list(rows) if on_gpu else []:
            row = dataclasses.replace(eager, provider=f"{eager.provider}+graph", mode="graph")
            try:
                if row.status == "ok":
                    calls[row.provider] = [graphed(call) for call in calls[eager.provider]]
            except Exception as failure:
                row.status, row.error = "failed", str(failure)
            rows.append(row)
        times = interleaved(calls, options.rounds, options.device, options.seconds)
        gave_up = _gave_up()
    for row in rows:
        if gave_up and row.status == "ok" and not row.provider.startswith(TORCHS):
            row.status, row.error = "failed", f"this or another: {gave_up}"
    return [dataclasses.replace(row, **times[row.provider].columns()) if row.status == "ok" else row for row in rows]


def _gave_up() -> str:
    """The error if a launch has given up waiting, once all have run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    try:
        watchdog.check()
    except RuntimeError as error:
        return str(error)
    return ""


def summary(rows: list[Row]) -> str:
    """A line a provider: its kernel, and mode by mode the median and that over the faster of torch's."""
    fastest = min(row.p50_ms for row in rows if row.provider.startswith(TORCHS) and row.n)
    lines = {}
    for row in rows:
        words = f"{row.mode} {row.p50_ms:.3f} ms, {row.p50_ms / fastest:.2f}" if row.n else f"{row.mode} {row.status}"
        if row.status == "failed" and row.mode == "eager":
            words += f": {row.error}"
        lines.setdefault(row.provider.removesuffix("+graph"), [row.kernel]).append(words)
    return "\n".join(f"    {name:24}{kernel:8}" + "  ".join(words) for name, (kernel, *words) in lines.items())


if __name__ == "__main__":
    sys.exit(main())
