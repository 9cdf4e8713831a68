"""Floors: lower bounds of times, which no implementation of a case can beat. They follow from rates measured here.

The floor of a call is

    launch + max(bytes moved / memory bandwidth, bytes read again / L2 bandwidth, FLOPs / matrix rate,
                 steps * smallest step + (steps - 1) * min(hop, alone))

- launch: the call of one tiny kernel, in the same mode and by the same clock. Each round takes the fastest of 20 calls.
- bytes moved: the input, W_ih, W_hh, the outputs and the states once, and the part of the bytes read again that the
  L2 cannot hold. If all of them fit in a warm L2 (on a CPU: the last cache), the L2's bandwidth replaces the memory's.
- bytes read again: the part of W_hh beyond all registers and shared memory of the chip, in every other step.
- steps: T + layers - 1, with layers in a wavefront. With two directions it is T * layers, because a layer cannot begin
  before the layer below has ended. The directions run at the same time. For packed input, T is the longest length.
- smallest step: one warp's product, two activations, the update, and the conversion of the state to an operand, one
  after the other.
- hop: the fastest hop of one word between two multiprocessors, by any hand-over. See `measure_hop`.
- alone: half of the time in which one multiprocessor, at its share of the matrix rate, computes the products of one
  row's step. If longer, it is half of the time to read the part of W_hh that the multiprocessor cannot hold.

Batch rows do not wait for each other, so more rows add FLOPs and no hop. Multiprocessors that share a row's step wait
for a hop. They can multiply and read during the hop, so only the hop is included. A multiprocessor that computes the
step alone can begin once the first unit of the previous step is finished. That unit has waited for the step before.
Therefore the products of a step can take the time of two steps, and half of their time is included. A weight read in
that time can serve both steps.

    python -m perf floors [--out perf/results]
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from triton_gru.accuracy import PRECISIONS
from triton_gru.kernels import exchange
from triton_gru.launch import hang
from triton_gru.launch.grid import Mailbox
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import HANDOVERS, GridConfig
from triton_gru.plan.device import find_device
from triton_gru.tuning.timing import capture_graph, clock, host_clock, quantiles, samples

from .case import Case
from .floors_kernel import hop_steps, read_shared, smallest_steps
from .record import BEGUN, Row, TimingsCsv, machine_name

ROUNDS = 30
_MAX_ATTEMPTS = 2  # measurements of a machine that may fail or hang before sweeps do without floors
PART, PARTS = 8192, 32  # elements of a part, and number of parts: 1 MiB of int32, a state that all programs read
PROGRAMS, ROW = 2, 8  # for a hop: ROW elements of fp16 are one word, of which each program sends four
STEPS, FEWER_STEPS = 1000, 125  # hops of the two launches whose difference is measured
# Upper bound of the bytes per second that a multiprocessor can read: twice the 64 bytes per cycle of NVIDIA GPUs,
# at 3 GHz.
_MAX_READ_RATE = 128 * 3e9
_REGISTER_BYTES = 256 << 10  # bytes of a multiprocessor's registers, on every NVIDIA GPU since Kepler
_LAUNCH_CALLS = 20  # calls in a round. The fastest is taken, because a busy host delays most calls
_SHARED_READS = 20  # times that each program of `read_shared` reads everything
_SMALLEST_STEPS = 1 << 15  # steps of a launch of `smallest_steps`
_LAST = "floor.launch"  # the provider of the last row of a complete measurement, whose mode is "eager"


@dataclass(frozen=True)
class Floors:
    """The rates and latencies of a machine, from which floors follow.

    Attributes:
        memory, l2: bandwidths in bytes per second.
        matrix: FLOPs per second, by the dtype and the precision of a row.
        launch: seconds of a launch, by mode.
        hop: seconds of a hop of one word from one multiprocessor to another. 0 if unknown: then hops add no time.
        step: seconds of a step of the smallest GRU. 0 if unknown.
        multiprocessors: the number of multiprocessors. 1 on a CPU.
        on_chip: bytes of registers and shared memory of one multiprocessor. 0 if unknown.
        l2_bytes: capacity of the L2 in bytes. On a CPU that of the largest cache, or 0 if unknown.
    """

    memory: float = 0.0
    l2: float = 0.0
    matrix: dict[tuple[str, str], float] = field(default_factory=dict)
    launch: dict[str, float] = field(default_factory=dict)
    hop: float = 0.0
    step: float = 0.0
    multiprocessors: int = 1
    on_chip: int = 0
    l2_bytes: int = 0

    def compute_floor_ms(self, case: Case, mode: str, l2: str) -> float | str:
        """Return the floor of a call in milliseconds, or "" if the launch time or the matrix rate is missing.

        In mode "host" it is the floor of the host's part of the call. For ``l2`` see `measure.Conditions`.
        """
        row = case.make_row()
        if mode not in self.launch or (row.dtype, row.precision) not in self.matrix:
            return ""
        if mode == "host":
            return 1000 * self.launch[mode]
        rate = self.matrix[row.dtype, row.precision]
        moved_bytes, reread_bytes, flops = self._compute_work(case)
        bandwidth = self.l2 if l2 == "warm" and moved_bytes <= self.l2_bytes else self.memory
        steps = case.steps + case.layers - 1 if case.directions == 1 else case.steps * case.layers
        w_hh_size = 3 * case.hidden**2  # elements
        product_seconds = 2 * w_hh_size * self.multiprocessors / rate  # of one row's step on one multiprocessor
        read_seconds = (w_hh_size * case.dtype.itemsize - self.on_chip) / _MAX_READ_RATE
        alone = max(product_seconds, read_seconds) / 2
        recurrence = steps * self.step + (steps - 1) * min(self.hop, alone)
        longest = max(moved_bytes / bandwidth, reread_bytes / self.l2, flops / rate, recurrence)
        return 1000 * (self.launch[mode] + longest)

    def _compute_work(self, case: Case) -> tuple[int, int, int]:
        """Return the bytes moved, the bytes read again, and the FLOPs of a call, as the module's docstring says."""
        element_bytes, directions = case.dtype.itemsize, case.directions
        input_sizes = [case.inputs] + [directions * case.hidden] * (case.layers - 1)  # of each layer
        weights = directions * sum(3 * case.hidden * (inputs + case.hidden) for inputs in input_sizes)
        scans = case.layers * directions
        states_moved = 2 if case.is_streaming else 1  # a frame also reads the state that it replaces
        state_bytes = scans * case.batch * case.hidden * element_bytes * states_moved
        sequence_bytes = (case.inputs + directions * case.hidden) * case.total_steps * element_bytes
        beyond_chip = 3 * case.hidden**2 * element_bytes - self.multiprocessors * self.on_chip
        beyond_chip = max(0, beyond_chip) if self.on_chip else 0
        rereads = (case.steps - 1) // 2 * scans  # in every other step
        moved = sequence_bytes + weights * element_bytes + state_bytes
        moved += rereads * max(0, beyond_chip - self.l2_bytes)
        return moved, rereads * beyond_chip, case.total_steps * 2 * weights

    def __str__(self) -> str:
        """Return the rates and latencies in a line, with units. Without a hop, the step is left out, too."""
        if not self.launch:
            return "unknown, as their measurement failed; `python -m perf floors` measures them again"
        words = [f"memory {self.memory / 1e9:.0f} GB/s", f"L2 {self.l2 / 1e9:.0f} GB/s"]
        words += [f"{dtype} {precision} {rate / 1e12:.2f} TFLOP/s" for (dtype, precision), rate in self.matrix.items()]
        words += [f"{mode} launch {1e6 * seconds:.1f} us" for mode, seconds in self.launch.items()]
        words += [f"hop {1e6 * self.hop:.2f} us, smallest step {1e9 * self.step:.0f} ns"] * bool(self.hop)
        return ", ".join(words)


def load_or_measure(out: pathlib.Path, device: str, remeasure: bool = False) -> Floors:
    """Return the floors of this machine from the CSV in the folder ``out``.

    If the CSV has no complete measurement of this machine, or with ``remeasure``, measure and append to the CSV first.
    After `_MAX_ATTEMPTS` measurements that did not complete, only ``remeasure`` measures. Otherwise a kernel that hangs
    here would hang every sweep.

    A measurement that fails is written and printed, and with ``remeasure`` its error is raised. Then, and without any
    complete measurement, the returned floors are unknown. Sweeps need none: `compute_floor_ms` returns "".
    """
    report = TimingsCsv(out / f"floors-{machine_name(device)}.csv", device)
    num_attempts = len({row["run_id"] for row in report.own_rows()})
    if remeasure or (not _find_last_run(report) and num_attempts < _MAX_ATTEMPTS):
        report.add(Row(provider=_LAST, status=BEGUN))
        try:
            for row in _measure(device):
                report.add(row)
        except Exception as failure:
            failed = Row(provider=_LAST, status="failed", error=f"{type(failure).__name__}: {failure}")
            report.add(failed)
            if remeasure:
                raise
            print(f"floors could not be measured: {failed.error}", flush=True)
    rows = _find_last_run(report)
    return _compute_floors(rows, device) if rows else Floors()


def _find_last_run(report: TimingsCsv) -> list[dict[str, str]]:
    """Return the rows of the last complete measurement of floors on this machine. The list is empty if there is none.

    A measurement that was interrupted or failed lacks the times of its last row: provider `_LAST`, mode "eager".
    """
    rows = [row for row in report.own_rows() if int(row["n"])]
    complete_runs = [row["run_id"] for row in rows if (row["provider"], row["mode"]) == (_LAST, "eager")]
    return [row for row in rows if complete_runs and row["run_id"] == complete_runs[-1]]


def _compute_floors(rows: list[dict[str, str]], device: str) -> Floors:
    """Return the floors from the rows of `_measure`, with the sizes of this machine."""
    rates = {"matrix": {}, "launch": {}}
    for row in rows:
        name = row["provider"].removeprefix("floor.")
        amount, *_ = row["config"].split()  # the amount of work in a call, before its unit
        # The seconds of one unit of work, by the 20th percentile. With a larger one, a measurement could beat a floor.
        seconds = float(row["p20_ms"]) / 1000 / float(amount)
        if name == "launch":
            rates[name][row["mode"]] = seconds
        elif name == "matrix":
            rates[name][row["dtype"], row["precision"]] = 1 / seconds
        else:
            rates[name] = seconds if name in ("hop", "step") else 1 / seconds
    if device == "cpu":
        return Floors(**rates, l2_bytes=_cpu_cache_bytes())
    gpu, l2_bytes = find_device(torch.device(device)), torch.cuda.get_device_properties(0).L2_cache_size
    return Floors(**rates, multiprocessors=gpu.sms, on_chip=gpu.shared_memory + _REGISTER_BYTES, l2_bytes=l2_bytes)


def _cpu_cache_bytes() -> int:
    """Return the size of the CPU's largest cache, or 0 if the system does not report it.

    With 0, floors follow from the memory's bandwidth, even for data that fits a cache.
    """
    sizes = [path.read_text().strip() for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=0)


def _measure(device: str) -> Iterator[Row]:
    """Yield a row for each rate or latency. ``config`` has the amount of work in a call, and its unit."""

    def time_call(name: str, amount: int, unit: str, call: Callable, time_once=None, **row_fields) -> Row:
        """Return the row of a call that does ``amount`` units of work, timed by ``time_once`` or the device's clock."""
        time_once = time_once or clock(device)
        calls = _LAUNCH_CALLS if name == "launch" else 1
        times = samples({name: [call]}, ROUNDS, lambda call: min(time_once(call) for _ in range(calls)), seconds=2.0)
        columns = quantiles(times[name]).columns()
        return Row(provider=f"floor.{name}", config=f"{amount} {unit}", **row_fields, **columns)

    def make_copy(size: int) -> Callable:
        """Return a function that copies ``size`` bytes."""
        source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
        return functools.partial(target.copy_, source)

    size, matrix_size, precisions = (2 << 30, 8192, PRECISIONS) if device == "cuda" else (256 << 20, 1024, ("fp32",))
    yield time_call("memory", 2 * size, "bytes", make_copy(size))  # a copy reads and writes each byte
    for case in [Case(precision, 1, 1, 1) for precision in precisions]:
        # Zeros take the least power, so that the clock stays up.
        operands = torch.zeros(2, matrix_size, matrix_size, device=device, dtype=case.dtype)
        multiply, case_row = functools.partial(torch.matmul, *operands), case.make_row()
        row_fields = {"dtype": case_row.dtype, "precision": case_row.precision}
        with case.pin_precision():
            row = time_call("matrix", 2 * matrix_size**3, "FLOPs", multiply, **row_fields)
        yield row
    # `fill_` launches a kernel. `zero_` would be a memset, whose replay takes longer than a kernel's.
    launch = functools.partial(torch.zeros(32, device=device).fill_, 1.0)
    if device == "cuda":
        source = torch.ones(PART * PARTS, dtype=torch.int32, device=device)
        programs = 2 * find_device(source.device).sms
        result = torch.zeros(programs, dtype=torch.int32, device=device)
        options = {"PART": PART, "PARTS": PARTS, "num_warps": 16}
        read = Launch(read_shared, (programs,), (source, result, _SHARED_READS), options)
        yield time_call("l2", programs * _SHARED_READS * source.nbytes, "bytes", read.start)
        assert (result == _SHARED_READS * source.numel()).all(), (
            "some programs did not read all of the source: the L2 rate would be wrong"
        )
        w, h = torch.zeros(16, 16, dtype=torch.float16, device=device), torch.zeros(16, 8, device=device)
        steps = Launch(smallest_steps, (1,), (w, h, _SMALLEST_STEPS), {"num_warps": 1})
        yield time_call("step", _SMALLEST_STEPS, "steps", steps.start)
        yield measure_hop(ROUNDS)
        replay, _ = capture_graph(launch)
        yield time_call("launch", 1, "launch", replay, mode="graph")
    else:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # on a busy CPU, several threads wait for each other longer than the copy takes
        cached_size = 1 << 18  # bytes that fit the caches of a core. ``threads`` cores copy ``threads`` times as fast.
        yield time_call("l2", threads * 2 * cached_size, "bytes", make_copy(cached_size))
        torch.set_num_threads(threads)
    yield time_call("launch", 1, "launch", launch, host_clock, mode="host")
    yield time_call("launch", 1, "launch", launch)  # the last row of a complete run, see `_find_last_run`


class Hops:
    """A launch of ``steps`` hops by a hand-over, and a check of its result."""

    def __init__(self, handover: str, steps: int, device: torch.device):
        config = GridConfig(
            units=ROW // PROGRAMS, programs=PROGRAMS, batch=1, rows=1, tiles=1, copies=1, slices=1, register_tiles=0,
            handover=handover,
        )  # fmt: skip
        mailbox = Mailbox(config, 1, 1, torch.float16)
        words = torch.empty(mailbox.count_words(steps), dtype=torch.int64, device=device)
        self._steps, self._result = steps, torch.zeros(PROGRAMS, dtype=torch.int32, device=device)
        word_layout = exchange.WordLayout(
            BITS=16, PARTS=4, WORDS_PER_ROW=ROW // 8, WORDS_PER_SEGMENT=4, ROWS=1, PROBE=handover == "probe"
        )
        constants = {
            "PROGRAMS": PROGRAMS, "ROW": ROW, "BATCH": 1, "SLICES": 1, "words": word_layout,
            "num_warps": 1, "num_stages": 1, "launch_cooperative_grid": True,
        }  # fmt: skip
        arguments = words, hang.get_watchdog(device).watch, self._result, steps
        self.launch = Launch(hop_steps, (PROGRAMS,), arguments, constants, mailbox.make_fill(words, steps))

    def is_right(self, call: Callable[[], object]) -> bool:
        """Run ``call``, which starts this launch or replays a graph of it. Return whether its results are right.

        Raises:
            RuntimeError: a program gave up waiting.
        """
        self._result.zero_()
        call()
        results = self._result.tolist()  # waits for the device
        hang.raise_if_hung()
        return results == [compute_answer(self._steps)] * PROGRAMS


@functools.cache
def compute_answer(steps: int) -> int:
    """Return the result that every program of `hop_steps` must have, computed by torch without a hand-over."""
    element = torch.arange(ROW, device="cpu")
    history = 0
    for _ in range(steps):
        # Compute what `floors_kernel._make_elements` does. A part of a word is two elements of fp16, read as an int32.
        parts = (((history >> 12) + (element & 127)) & 1023).half().view(torch.int32)
        history = (history * 5 + int(parts.sum()) + 2**31) % 2**32 - 2**31  # wraps around, as an int32 does
    return history


def measure_hop(rounds: int) -> Row:
    """Return the row of a hop by the fastest hand-over whose results are right, before and after it is timed.

    Two launches of a hand-over are timed in CUDA graphs, with `FEWER_STEPS` and `STEPS` hops. Each graph also clears
    the mailbox. A hop is the difference of the two times over the difference of the two numbers of hops, which cancels
    the cost of a launch. A hop includes the work of a step: the sum of the received words, and the computation of the
    next elements.

    Raises:
        RuntimeError: no hand-over is right.
    """
    device, times_of, reasons = torch.device("cuda"), {}, []
    for handover in HANDOVERS:
        launches = [Hops(handover, steps, device) for steps in (FEWER_STEPS, STEPS)]
        try:
            replays = [capture_graph(hops.launch.start)[0] for hops in launches]
            check_results = functools.partial(map, Hops.is_right, launches, replays)
            if all(check_results()):
                calls = {"fewer": [replays[0]], "more": [replays[1]]}
                times = samples(calls, rounds, clock("cuda"), seconds=2.0)
                pairs = zip(times["fewer"], times["more"])
                times_of[handover] = quantiles([(more - fewer) / (STEPS - FEWER_STEPS) for fewer, more in pairs])
            if not all(check_results()):
                times_of.pop(handover, None)
                reasons.append(f"{handover}: wrong result")
        except RuntimeError as error:
            reasons.append(f"{handover}: {error}")
    if not times_of:
        raise RuntimeError(f"no hand-over works on this GPU: {'; '.join(reasons)}")
    fastest = min(times_of, key=lambda handover: times_of[handover].p20)
    return Row(provider="floor.hop", config=f"1 hops by {fastest}", mode="graph", **times_of[fastest].columns())
