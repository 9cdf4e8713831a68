"""How fast is ``block`` against torch.nn.GRU where both keep the weights on chip? (H to 192, T = 512; 5 minutes)

Both in eval() under inference_mode, in the same precision, in one run: eager against eager, graph against graph.
A provider that is further from float64 than the library's own bound gets no time.

    python -m perf.block_vs_torch [--out perf/results] [--device cpu --steps 16 --rounds 3]
"""

import argparse
import dataclasses
import pathlib
import sys
import warnings

import torch
from torch import nn

import triton_gru
from triton_gru.check import PRECISIONS, bound, exact, set_precision

from .record import Report, Row
from .timing import graphed, interleaved

HIDDEN, BATCH, ROTATED = (32, 64, 128, 192), (1, 16, 64), 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("perf/results"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["tf32", "fp16"])
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    if options.device == "cpu":
        print("no GPU: a rehearsal on the CPU, where both are torch's own GRU", flush=True)
    # Parameters that are not flattened would cost torch.nn.GRU a copy on every call.
    warnings.filterwarnings("error", message="RNN module weights are not part of single contiguous chunk")
    report = Report(options.out / f"block_vs_torch-{options.device}.csv", options.device)
    cells = [(p, h, b) for p in options.precision for h in HIDDEN for b in BATCH]
    for number, (precision, hidden, batch) in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {precision} H={hidden} B={batch}", end="  ", flush=True)
        rows = measure(precision, hidden, batch, options)
        for row in rows:
            report.add(row)
        print(
            "  ".join(
                f"{r.provider} {r.p50_ms:.3f} ms" if r.status == "ok" else f"{r.provider} {r.status}" for r in rows
            )
        )
    print(f"wrote {report.path}")


def measure(precision: str, hidden: int, batch: int, options) -> list[Row]:
    """One row a provider and mode, timed in turns where it is right."""
    dtype, on_gpu = set_precision(precision), options.device == "cuda"
    ours = triton_gru.GRU(hidden, hidden, device=options.device, dtype=dtype).eval()
    theirs = nn.GRU(hidden, hidden, device=options.device, dtype=dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    inputs = [torch.randn(options.steps, batch, hidden, device=options.device).to(dtype) for _ in range(ROTATED)]
    plan = ours.plan(inputs[0])
    cell = Row(
        dtype=str(dtype)[6:], precision=PRECISIONS[precision][1], T=options.steps, B=batch, I=hidden, H=hidden,
        l2=f"{ROTATED} inputs rotated",
    )  # fmt: skip
    providers = {
        "triton_gru": (ours, {"kernel": plan.kernel, "config": str(plan.config or ""), "config_source": plan.source}),
        "torch.nn.GRU": (theirs, {"kernel": "cudnn" if on_gpu else "torch"}),
    }
    rows, calls = {}, {}
    with torch.inference_mode():
        expected = exact(theirs, inputs[0], None)[0]
        errors = {
            name: (gru(inputs[0])[0].double().cpu() - expected).abs().max().item()
            for name, (gru, _) in providers.items()
        }
        for name, (gru, about) in providers.items():
            right = errors[name] <= bound(errors["torch.nn.GRU"], precision)
            about |= {"max_abs_err": errors[name], "status": "ok" if right else "wrong"}
            functions = [lambda gru=gru, x=x: gru(x) for x in inputs]
            for mode in ("eager", "graph") if on_gpu else ("eager",):
                provider = name if mode == "eager" else f"{name}+graph"
                rows[provider] = dataclasses.replace(cell, **about, provider=provider, mode=mode)
                if right:
                    calls[provider] = functions if mode == "eager" else [graphed(f) for f in functions]
        times = interleaved(calls, options.rounds, options.device)
    return [dataclasses.replace(row, **times[name].columns()) if name in times else row for name, row in rows.items()]


if __name__ == "__main__":
    sys.exit(main())
