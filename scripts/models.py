"""Times whole models before and after accelerate(): eager, in a CUDA graph, and in two modes of torch.compile.

The models are the demo's, NSNet2 and GTCRN, all trained, in TF32 and fp16. A model is timed, before or after
accelerate(), only if its results are about as close to float64 as those of the eager model with nn.GRU. The script
needs the packages that `scripts/test` and `scripts/demo` install.

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
from perf.gpu import is_gpu_lost
from perf.measure import DeviceLost
from perf.precompile import run_in_parallel
from perf.providers import BASELINE, OURS
from perf.providers.ours import get_hang_error
from perf.record import BEGUN, Row, TimingsCsv, add_times, machine_name, row_key, statuses
from perf.run import measure_cases
from tests.models import GTCRN, NSNET2, package_file
from triton_gru.accuracy import compute_error_bound
from triton_gru.plan.device import find_device
from triton_gru.tuning.timing import capture_graph, clock, samples
from triton_gru.units import format_time

MODES = ("eager", "graph", "compile", "reduce-overhead")
ROUNDS, SECONDS = 200, 2.0  # at most, for a model in a precision
CLOSE = 4  # a result's error may be this many times the bound on the error of the model with nn.GRU
REHEARSED = "NSNet2, rehearsed"  # for a CPU
# For each model: a case with the sizes of its largest GRU, and the sizes of its inputs.
CASES = {
    "NSNet2, 10 s of sound": (Case("tf32", 400, 1, 1000), [(1, 1000, 161)]),
    "demo, 64 words": (Case("tf32", 256, 64, 9), [(64, 9)]),
    "demo, a word": (Case("tf32", 256, 1, 9), [(1, 9)]),
    "GTCRN, a frame": (Case("tf32", 16, 1, 1), [(1, 257, 1, 2), (2, 1, 16, 16, 33), (2, 3, 1, 1, 16), (2, 1, 33, 16)]),
    REHEARSED: (Case("tf32", 400, 1, 3), [(1, 3, 161)]),
}
ONNX = {"NSNet2": NSNET2, "GTCRN": GTCRN}
Target = tuple[str, str]  # what is timed at a time: a key of `CASES`, and a precision
KEY = ("variant", "dtype", "precision")  # the columns that identify a target


def list_targets(rehearse: bool) -> list[Target]:
    """Return the targets to measure, the most valuable first."""
    if rehearse:
        return [(REHEARSED, "fp32")]
    names = [name for name in CASES if name != REHEARSED]
    return list(itertools.product(names, ("tf32", "fp16")))


def case_of(target: Target) -> Case:
    """Return the case with the sizes of the model's largest GRU, in the target's precision."""
    name, precision = target
    case, _ = CASES[name]
    return replace(case, precision=precision)


def row_of(target: Target) -> Row:
    """Return a row of the CSV that identifies the target, without a result."""
    name, _ = target
    return replace(case_of(target).make_row(), variant=name, l2="warm")


def key_of(target: Target) -> tuple[str, ...]:
    """Return the values of the columns `KEY` of the target's rows."""
    return row_key(row_of(target), KEY)


def find_owed(rows: list[dict[str, str]], rehearse: bool) -> list[Target]:
    """Return the targets without results in ``rows``, the rows of the CSV.

    A target that was begun and did not end comes last, as it may have hung or ended the process.
    """
    status_of = statuses(rows, KEY)
    # A target without a row has not been begun. Its default status makes it owed, too.
    owed = [target for target in list_targets(rehearse) if status_of.get(key_of(target), BEGUN) == BEGUN]
    return sorted(owed, key=lambda target: key_of(target) in status_of)


def compile_models(targets: list[Target]) -> None:
    """Fill the compilers' caches on disk for all targets, in parallel processes."""
    run_in_parallel(
        functools.partial(measure, target, "cuda", (mode,), timing=False) for target in targets for mode in MODES
    )


@torch.no_grad()
def measure(target: Target, device: str, modes: tuple[str, ...] = (), timing: bool = True) -> list[Row]:
    """Return the rows of a model, before and after accelerate(), in each mode.

    With ``timing``, rows with right results have times. If a package of the model is missing, return one row with that
    reason. If a launch of ours gave up waiting, all rows have failed. ``modes`` are by default all of `MODES` on a GPU,
    and eager on a CPU.
    """
    modes = modes or (MODES if device == "cuda" else ("eager",))
    (name, _), case, row_without_result = target, case_of(target), row_of(target)
    torch.compiler.reset()  # otherwise code compiled for other models counts against a limit
    try:
        model, inputs = load(name)
    except (ImportError, OSError) as error:
        message = f"{error}: run scripts/test and scripts/demo, which install the packages"
        return [replace(row_without_result, provider=OURS, status="unavailable", error=message)]
    exact_outputs = copy.deepcopy(model).double()(*convert_inputs(inputs, torch.float64))
    inputs = tuple(x.to(device) for x in convert_inputs(inputs, case.dtype))
    model.to(device, case.dtype)
    rows, calls = [], {}
    with case.pin_precision():  # with the case's precision of fp32 products
        allowed_errors = [
            CLOSE * compute_error_bound(error, case.precision, exact.abs().max().item())
            for error, exact in zip(compute_errors(model(*inputs), exact_outputs), exact_outputs)
        ]
        accelerated = triton_gru.accelerate(copy.deepcopy(model))
        kernels = {BASELINE: "", OURS: name_kernels(accelerated, inputs)}
        models = {BASELINE: model, OURS: accelerated}
        for (provider, timed_model), mode in itertools.product(models.items(), modes):
            row = replace(row_without_result, provider=provider, kernel=kernels[provider], mode=mode)
            try:
                call, outputs = prepare_call(timed_model, inputs, mode)
                errors = compute_errors(outputs, exact_outputs)
                row.max_abs_err = max(errors)
                if all(error <= allowed for error, allowed in zip(errors, allowed_errors)):  # False for NaN
                    calls[provider, mode] = [call]
                else:
                    row.status = "wrong"
            except Exception as error:
                row.status, row.error = "failed", f"{type(error).__name__}: {error}"
            rows.append(row)
        times = samples(calls, ROUNDS, clock(device), SECONDS, stop_when_quiet=True) if timing else {}
    if error := get_hang_error():
        return [replace(row, status="failed", error=error) for row in rows]
    return [add_times(row, times[row.provider, row.mode]) if (row.provider, row.mode) in times else row for row in rows]


def load(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the model that ``name``, a key of `CASES`, begins with, and its inputs, on the CPU in fp32.

    Raises:
        ImportError, OSError: a package is missing.
    """
    model_name, _, _ = name.partition(",")
    _, sizes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    if model_name == "demo":
        import g2p

        model, (batch, length) = g2p.load_model(), sizes[0]
        letters = torch.randint(3, len(g2p.LETTERS), (64 * batch, length), generator=generator)
        letters[:, -1] = g2p.LETTERS.index("</s>")
        # Take words with the largest gaps between the best two phonemes: rounding must not decide on a phoneme.
        _, gaps = copy.deepcopy(model).double()(letters)
        clearest = gaps.amin(1).topk(batch).indices
        return model, (letters[clearest],)
    import onnx

    from tests.models.onnx_model import torch_model

    inputs = tuple(torch.randn(size, generator=generator) for size in sizes)
    return torch_model(onnx.load(package_file(*ONNX[model_name])), inputs).eval(), inputs


def name_kernels(model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Return the names of the kernels that serve the accelerated GRUs in a run of the model, or "torch" for nn.GRU."""
    kernels = set()
    grus = [module for module in model.modules() if isinstance(module, triton_gru.GRU | triton_gru.GRUCell)]
    hooks = [gru.register_forward_pre_hook(lambda gru, args: kernels.add(gru.plan(*args).kernel)) for gru in grus]
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return ", ".join(sorted(kernels))


def convert_inputs(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the inputs with floating-point tensors in ``dtype``, and integers unchanged."""
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def prepare_call(model: nn.Module, inputs: tuple[Tensor, ...], mode: str) -> tuple[Callable, list[Tensor]]:
    """Return a function that runs the model once in a mode of `MODES`, and copies of the outputs of a run."""
    if mode == "graph":
        replay, outputs = capture_graph(lambda: model(*inputs))
        # Zeroed outputs show that the replay writes them.
        for output in outputs:
            output.zero_()
        replay()
        return replay, [output.clone() for output in outputs]
    if mode != "eager":
        model = torch.compile(model, mode=None if mode == "compile" else mode)
    for _ in range(3):  # "reduce-overhead" records its CUDA graph in the second call
        outputs = [output.clone() for output in model(*inputs)]
    return functools.partial(model, *inputs), outputs


def compute_errors(outputs, exact_outputs) -> list[float]:
    """Return the largest error of each output."""
    return [(output.double().cpu() - exact).abs().max().item() for output, exact in zip(outputs, exact_outputs)]


def format_rows(rows: list[Row]) -> str:
    """Return a line for each row: its time, or its status and error."""
    return "\n".join(
        f"    {row.provider:16}{row.mode:16}{format_time(1000 * row.p50_ms) if row.n else f'{row.status} {row.error}'}"
        for row in rows
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure the targets that the CSV of this machine lacks, and write their rows to the CSV."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/perf"), help="folder of the CSV")
    parser.add_argument("--rehearse", action="store_true", help="measure one small model, on a CPU")
    options = parser.parse_args(arguments)
    if options.rehearse and find_device(torch.device("cpu")) is None:
        parser.error("--rehearse needs an emulated GPU: python -m tests.ptx.rehearse scripts/models.py --rehearse")
    device = "cpu" if options.rehearse else "cuda"
    report = TimingsCsv(options.out / f"models-{machine_name(device)}.csv", device)
    targets = find_owed(report.rows(), options.rehearse)
    if not options.rehearse:
        compile_models(targets)

    def measure_target(target: Target) -> list[Row]:
        rows = measure(target, device)
        if is_gpu_lost():
            raise DeviceLost(rows)
        return rows

    jobs = [(target, row_of(target), functools.partial(measure_target, target)) for target in targets]
    try:
        measure_cases(report, jobs, format_rows)
    except DeviceLost:
        sys.exit("the GPU does not answer this process any more: run the same command again to continue")


if __name__ == "__main__":
    main()
