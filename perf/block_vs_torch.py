"""How fast is ``block`` against torch.nn.GRU where both keep the weights on chip? (H to 192, T = 512; 5 minutes)

Both in eval() under inference_mode, in the same precision, in one run: eager against eager, graph against graph.
A provider that is further from float64 than the library's own bound gets no time.

    python -m perf.block_vs_torch [--out perf/results] [--device cpu --steps 16 --rounds 3]
"""

import argparse
import pathlib
import sys
import warnings

import torch
from torch import nn

import triton_gru
from triton_gru.check import PRECISIONS, bound, exact

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
    dtype, torch.backends.cudnn.rnn.fp32_precision = PRECISIONS[precision]
    ours = triton_gru.GRU(hidden, hidden, device=options.device, dtype=dtype).eval()
    theirs = nn.GRU(hidden, hidden, device=options.device, dtype=dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    inputs = [torch.randn(options.steps, batch, hidden, device=options.device).to(dtype) for _ in range(ROTATED)]
    plan = ours.plan(inputs[0])
    shape = Row(
        dtype=str(dtype)[6:], precision=PRECISIONS[precision][1], T=options.steps, B=batch, I=hidden, H=hidden,
        l2=f"{ROTATED} inputs rotated", n=options.rounds,
    ).__dict__  # fmt: skip
    providers = {
        "triton_gru": (ours, {"kernel": plan.kernel, "config": str(plan.config or ""), "config_source": plan.source}),
        "torch.nn.GRU": (theirs, {"kernel": "cudnn" if options.device == "cuda" else "torch"}),
    }
    with torch.inference_mode():
        return _measure(shape, providers, inputs, precision, options)


def _measure(shape: dict, providers: dict, inputs: list, precision: str, options) -> list[Row]:
    expected = exact(providers["torch.nn.GRU"][0], inputs[0], None)[0]
    errors = {
        name: (gru(inputs[0])[0].double().cpu() - expected).abs().max().item() for name, (gru, _) in providers.items()
    }
    rows, calls = {}, {}
    for name, (gru, about) in providers.items():
        right = errors[name] <= bound(errors["torch.nn.GRU"], precision)
        for mode, suffix in (("eager", ""), ("graph", "+graph")) if options.device == "cuda" else (("eager", ""),):
            provider = name + suffix
            status = "ok" if right else "wrong"
            rows[provider] = Row(
                **shape | about | {"provider": provider, "mode": mode, "max_abs_err": errors[name], "status": status}
            )
            if right:
                functions = [lambda gru=gru, x=x: gru(x) for x in inputs]
                calls[provider] = [graphed(f) for f in functions] if mode == "graph" else functions
    for provider, times in interleaved(calls, options.rounds, options.device).items():
        row = rows[provider]
        row.p20_ms, row.p50_ms, row.p80_ms, row.rel_iqr = times.p20, times.p50, times.p80, times.rel_iqr
    return list(rows.values())


if __name__ == "__main__":
    sys.exit(main())
