"""Times whole models, accelerated and not: eager, in a CUDA graph, and under torch.compile in both its modes.

The demo's model, NSNet2 and GTCRN, trained, in fp32 as TF32 and in fp16. What is timed is about as close to float64 as
the model without us is, eager. Needs what `scripts/test` and `scripts/demo` install.

    python scripts/models.py [--out build/perf]                        # goes on where its CSV ends
    python -m tests.ptx.rehearse scripts/models.py --rehearse          # on a CPU: one of them, eager
"""

import argparse
import copy
import functools
import itertools
import pathlib
import sys
from collections.abc import Callable
from dataclasses import replace

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # perf and the tests are not installed

import torch
from torch import Tensor, nn

import triton_gru
from perf.case import Case
from perf.measure import DeviceLost
from perf.precompile import run_in_parallel
from perf.providers import BASELINE, OURS
from perf.providers.ours import get_hang_error, is_lost
from perf.record import BEGUN, Row, TimingsCsv, add_times, machine_name, row_key, statuses
from perf.run import measure_cells
from tests.models import GTCRN, NSNET2, package_file
from triton_gru.accuracy import compute_error_bound
from triton_gru.plan.device import find_device
from triton_gru.tuning.timing import capture_graph, clock, samples
from triton_gru.units import format_time

MODES = ("eager", "graph", "compile", "reduce-overhead")
ROUNDS, SECONDS = 200, 2.0  # of a model in a precision
CLOSE = 4  # a result may be as many times as far from float64 as the model without us
# For each model the case that stands for its largest GRU, and the sizes of its inputs.
CASES = {
    "NSNet2, 10 s of sound": (Case("tf32", 400, 1, 1000), [(1, 1000, 161)]),
    "demo, 64 words": (Case("tf32", 256, 64, 9), [(64, 9)]),
    "demo, a word": (Case("tf32", 256, 1, 9), [(1, 9)]),
    "GTCRN, a frame": (Case("tf32", 16, 1, 1), [(1, 257, 1, 2), (2, 1, 16, 16, 33), (2, 3, 1, 1, 16), (2, 1, 33, 16)]),
    "NSNet2, rehearsed": (Case("tf32", 400, 1, 3), [(1, 3, 161)]),
}
ONNX = {"NSNet2": NSNET2, "GTCRN": GTCRN}
Cell = tuple[str, str]  # a model and a precision
KEY = ("variant", "dtype", "precision")  # the columns that tell a cell's rows from those of others


def cells(rehearse: bool) -> list[Cell]:
    """Return what is measured, in order of value."""
    return [("NSNet2, rehearsed", "fp32")] if rehearse else list(itertools.product(list(CASES)[:-1], ("tf32", "fp16")))


def case_of(each: Cell) -> Case:
    return replace(CASES[each[0]][0], precision=each[1])


def row_of(each: Cell) -> Row:
    return replace(case_of(each).row(), variant=each[0], l2="warm")


def key_of(each: Cell) -> tuple[str, ...]:
    return row_key(row_of(each), KEY)


def find_owed(rows: list[dict[str, str]], rehearse: bool) -> list[Cell]:
    """Return the cells that ``rows`` has no results of.

    A cell that was begun and has no end comes last: it may have hung, or taken the process with it.
    """
    there = statuses(rows, KEY)
    todo = [each for each in cells(rehearse) if there.get(key_of(each), BEGUN) == BEGUN]
    return sorted(todo, key=lambda each: key_of(each) in there)


def compile_models(todo: list[Cell]) -> None:
    """Leave on disk what compilers keep there."""
    run_in_parallel(functools.partial(measure, each, "cuda", (mode,), timing=False) for each in todo for mode in MODES)


@torch.no_grad()
def measure(each: Cell, device: str, modes: tuple[str, ...] = (), timing: bool = True) -> list[Row]:
    """Return a row for each version of the model in each mode, with times unless not wanted."""
    modes = modes or (MODES if device == "cuda" else MODES[:1])
    name, case, blank = each[0], case_of(each), row_of(each)
    torch.compiler.reset()  # what it has compiled of other models counts against a limit
    try:
        model, inputs = load(name)
    except (ImportError, OSError) as missing:
        why = f"{missing}: scripts/test and scripts/demo install what is needed"
        return [replace(blank, provider=OURS, status="unavailable", error=why)]
    exact = copy.deepcopy(model).double()(*in_dtype(inputs, torch.float64))
    inputs = tuple(x.to(device) for x in in_dtype(inputs, case.dtype))
    model.to(device, case.dtype)
    rows, calls = [], {}
    with case.pinned():
        allowed = [
            CLOSE * compute_error_bound(error, case.precision, y.abs().max().item())
            for error, y in zip(errors(model(*inputs), exact), exact)
        ]
        versions = {BASELINE: model, OURS: triton_gru.accelerate(copy.deepcopy(model))}
        kernels = {BASELINE: "", OURS: kernels_of(versions[OURS], inputs)}
        for (provider, version), mode in itertools.product(versions.items(), modes):
            row = replace(blank, provider=provider, kernel=kernels[provider], mode=mode)
            try:
                call, outputs = caller(version, inputs, mode)
                row.max_abs_err = max(errors(outputs, exact))
                if all(error <= most for error, most in zip(errors(outputs, exact), allowed)):  # False for NaN
                    calls[provider, mode] = [call]
                else:
                    row.status = "wrong"
            except Exception as failure:
                row.status, row.error = "failed", f"{type(failure).__name__}: {failure}"
            rows.append(row)
        times = samples(calls, ROUNDS, clock(device), SECONDS, stop_when_quiet=True) if timing else {}
    if error := get_hang_error():
        return [replace(row, status="failed", error=error) for row in rows]
    return [add_times(row, times[key]) if (key := (row.provider, row.mode)) in times else row for row in rows]


def load(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the model and inputs for it, on the CPU in fp32. Raises ImportError and OSError for what is not there."""
    kind, sizes, generator = name.split(",")[0], CASES[name][1], torch.Generator().manual_seed(0)
    if kind == "demo":
        import g2p

        model, (batch, length) = g2p.load_model(), sizes[0]
        letters = torch.randint(3, len(g2p.LETTERS), (64 * batch, length), generator=generator)
        letters[:, -1] = g2p.LETTERS.index("</s>")
        # Words without a close call between two phonemes, which rounding would decide.
        return model, (letters[copy.deepcopy(model).double()(letters)[1].amin(1).topk(batch).indices],)
    import onnx

    from tests.models.onnx_model import torch_model

    inputs = tuple(torch.randn(size, generator=generator) for size in sizes)
    return torch_model(onnx.load(package_file(*ONNX[kind])), inputs).eval(), inputs


def kernels_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Return what serves the calls of the accelerated GRUs in a run of the model."""
    found, ours = set(), (triton_gru.GRU, triton_gru.GRUCell)
    grus = [each for each in model.modules() if isinstance(each, ours)]
    hooks = [each.register_forward_pre_hook(lambda gru, given: found.add(gru.plan(*given).kernel)) for each in grus]
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return ", ".join(sorted(found))


def in_dtype(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def caller(model: nn.Module, inputs: tuple[Tensor, ...], mode: str) -> tuple[Callable, list[Tensor]]:
    """Return what runs the model once, and what a run of it has given."""
    if mode == "graph":
        replay, outputs = capture_graph(lambda: model(*inputs))
        for each in outputs:
            each.zero_()
        replay()
        return replay, [each.clone() for each in outputs]
    if mode != "eager":
        model = torch.compile(model, mode=None if mode == "compile" else mode)
    for _ in range(3):  # "reduce-overhead" records its graph at the second
        outputs = [each.clone() for each in model(*inputs)]
    return functools.partial(model, *inputs), outputs


def errors(actual, exact) -> list[float]:
    return [(a.double().cpu() - b).abs().max().item() for a, b in zip(actual, exact)]


def told(rows: list[Row]) -> str:
    """Return a line for each row: its time, or why it has none."""
    return "\n".join(
        f"    {row.provider:16}{row.mode:16}{format_time(1000 * row.p50_ms) if row.n else f'{row.status} {row.error}'}"
        for row in rows
    )


def main(arguments: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/perf"), help="folder of the CSV")
    parser.add_argument("--rehearse", action="store_true", help="a small form, on a CPU")
    options = parser.parse_args(arguments)
    if options.rehearse and find_device(torch.device("cpu")) is None:
        parser.error("--rehearse needs an emulated GPU: python -m tests.ptx.rehearse scripts/models.py --rehearse")
    device = "cpu" if options.rehearse else "cuda"
    report = TimingsCsv(options.out / f"models-{machine_name(device)}.csv", device)
    todo = find_owed(report.rows(), options.rehearse)
    if not options.rehearse:
        compile_models(todo)

    def measure_cell(each: Cell) -> list[Row]:
        rows = measure(each, device)
        if is_lost():
            raise DeviceLost(rows)
        return rows

    try:
        measure_cells(report, [(each, row_of(each), functools.partial(measure_cell, each)) for each in todo], told)
    except DeviceLost:
        sys.exit("the GPU answers this process no more: the same command goes on in a new one")


if __name__ == "__main__":
    main()
