"""Times whole models before and after accelerate(): eager, in a CUDA graph, and in two modes of torch.compile.

The models are the demo's, NSNet2 and GTCRN, all trained, in TF32 and fp16. A version is timed only if its results are
about as close to float64 as those of the eager model with nn.GRU. It needs the packages that `scripts/test` and
`scripts/demo` install.

    python scripts/models.py [--out build/perf]                        # continues where its CSV ends
    python -m tests.ptx.rehearse scripts/models.py --rehearse          # on a CPU: one model, eager
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
ROUNDS, SECONDS = 200, 2.0  # at most, for a model in a precision
CLOSE = 4  # a result's error may be this many times the bound on the error of the model with nn.GRU
# For each model: a case with the sizes of its largest GRU, and the sizes of its inputs.
CASES = {
    "NSNet2, 10 s of sound": (Case("tf32", 400, 1, 1000), [(1, 1000, 161)]),
    "demo, 64 words": (Case("tf32", 256, 64, 9), [(64, 9)]),
    "demo, a word": (Case("tf32", 256, 1, 9), [(1, 9)]),
    "GTCRN, a frame": (Case("tf32", 16, 1, 1), [(1, 257, 1, 2), (2, 1, 16, 16, 33), (2, 3, 1, 1, 16), (2, 1, 33, 16)]),
    "NSNet2, rehearsed": (Case("tf32", 400, 1, 3), [(1, 3, 161)]),
}
ONNX = {"NSNet2": NSNET2, "GTCRN": GTCRN}
Cell = tuple[str, str]  # a model and a precision
KEY = ("variant", "dtype", "precision")  # the columns that identify a cell


def cells(rehearse: bool) -> list[Cell]:
    """Return the cells to measure, the most valuable first."""
    return [("NSNet2, rehearsed", "fp32")] if rehearse else list(itertools.product(list(CASES)[:-1], ("tf32", "fp16")))


def case_of(cell: Cell) -> Case:
    return replace(CASES[cell[0]][0], precision=cell[1])


def row_of(cell: Cell) -> Row:
    return replace(case_of(cell).row(), variant=cell[0], l2="warm")


def key_of(cell: Cell) -> tuple[str, ...]:
    return row_key(row_of(cell), KEY)


def find_owed(rows: list[dict[str, str]], rehearse: bool) -> list[Cell]:
    """Return the cells without results in ``rows``.

    A cell that was begun and did not end comes last, as it may have hung or ended the process.
    """
    status_of = statuses(rows, KEY)
    todo = [cell for cell in cells(rehearse) if status_of.get(key_of(cell), BEGUN) == BEGUN]
    return sorted(todo, key=lambda cell: key_of(cell) in status_of)


def compile_models(todo: list[Cell]) -> None:
    """Fill the compilers' caches on disk for all cells, in parallel processes."""
    run_in_parallel(functools.partial(measure, cell, "cuda", (mode,), timing=False) for cell in todo for mode in MODES)


@torch.no_grad()
def measure(cell: Cell, device: str, modes: tuple[str, ...] = (), timing: bool = True) -> list[Row]:
    """Return a row for each version of the model in each mode. With ``timing`` the rows have times."""
    modes = modes or (MODES if device == "cuda" else MODES[:1])
    name, case, blank = cell[0], case_of(cell), row_of(cell)
    torch.compiler.reset()  # otherwise code compiled for other models counts against a limit
    try:
        model, inputs = load(name)
    except (ImportError, OSError) as error:
        message = f"{error}: run scripts/test and scripts/demo, which install the packages"
        return [replace(blank, provider=OURS, status="unavailable", error=message)]
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
                call, outputs = make_call(version, inputs, mode)
                row.max_abs_err = max(errors(outputs, exact))
                if all(error <= limit for error, limit in zip(errors(outputs, exact), allowed)):  # False for NaN
                    calls[provider, mode] = [call]
                else:
                    row.status = "wrong"
            except Exception as error:
                row.status, row.error = "failed", f"{type(error).__name__}: {error}"
            rows.append(row)
        times = samples(calls, ROUNDS, clock(device), SECONDS, stop_when_quiet=True) if timing else {}
    if error := get_hang_error():
        return [replace(row, status="failed", error=error) for row in rows]
    return [add_times(row, times[key]) if (key := (row.provider, row.mode)) in times else row for row in rows]


def load(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a model and its inputs, on the CPU in fp32. Raise ImportError or OSError if a package is missing."""
    kind, sizes, generator = name.split(",")[0], CASES[name][1], torch.Generator().manual_seed(0)
    if kind == "demo":
        import g2p

        model, (batch, length) = g2p.load_model(), sizes[0]
        letters = torch.randint(3, len(g2p.LETTERS), (64 * batch, length), generator=generator)
        letters[:, -1] = g2p.LETTERS.index("</s>")
        # Take words with the largest gaps between the best two phonemes: rounding must not decide on a phoneme.
        return model, (letters[copy.deepcopy(model).double()(letters)[1].amin(1).topk(batch).indices],)
    import onnx

    from tests.models.onnx_model import torch_model

    inputs = tuple(torch.randn(size, generator=generator) for size in sizes)
    return torch_model(onnx.load(package_file(*ONNX[kind])), inputs).eval(), inputs


def kernels_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Return the implementations that serve the accelerated GRUs in a run of the model."""
    kernels = set()
    grus = [module for module in model.modules() if isinstance(module, triton_gru.GRU | triton_gru.GRUCell)]
    hooks = [gru.register_forward_pre_hook(lambda gru, args: kernels.add(gru.plan(*args).kernel)) for gru in grus]
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return ", ".join(sorted(kernels))


def in_dtype(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def make_call(model: nn.Module, inputs: tuple[Tensor, ...], mode: str) -> tuple[Callable, list[Tensor]]:
    """Return a function that runs the model once, and the outputs of a run."""
    if mode == "graph":
        replay, outputs = capture_graph(lambda: model(*inputs))
        for output in outputs:
            output.zero_()
        replay()
        return replay, [output.clone() for output in outputs]
    if mode != "eager":
        model = torch.compile(model, mode=None if mode == "compile" else mode)
    for _ in range(3):  # "reduce-overhead" records its CUDA graph in the second call
        outputs = [output.clone() for output in model(*inputs)]
    return functools.partial(model, *inputs), outputs


def errors(actual, exact) -> list[float]:
    return [(a.double().cpu() - b).abs().max().item() for a, b in zip(actual, exact)]


def format_rows(rows: list[Row]) -> str:
    """Return a line for each row: its time, or its status and error."""
    return "\n".join(
        f"    {row.provider:16}{row.mode:16}{format_time(1000 * row.p50_ms) if row.n else f'{row.status} {row.error}'}"
        for row in rows
    )


def main(arguments: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/perf"), help="folder of the CSV")
    parser.add_argument("--rehearse", action="store_true", help="measure one small model, on a CPU")
    options = parser.parse_args(arguments)
    if options.rehearse and find_device(torch.device("cpu")) is None:
        parser.error("--rehearse needs an emulated GPU: python -m tests.ptx.rehearse scripts/models.py --rehearse")
    device = "cpu" if options.rehearse else "cuda"
    report = TimingsCsv(options.out / f"models-{machine_name(device)}.csv", device)
    todo = find_owed(report.rows(), options.rehearse)
    if not options.rehearse:
        compile_models(todo)

    def measure_cell(cell: Cell) -> list[Row]:
        rows = measure(cell, device)
        if is_lost():
            raise DeviceLost(rows)
        return rows

    jobs = [(cell, row_of(cell), functools.partial(measure_cell, cell)) for cell in todo]
    try:
        measure_cells(report, jobs, format_rows)
    except DeviceLost:
        sys.exit("the GPU does not answer this process any more: run the same command again to continue")


if __name__ == "__main__":
    main()
