"""Floors: lower bounds of times, which no implementation of a case can beat. They follow from rates measured here.

The floor of a call is

    launch + max(bytes moved / memory bandwidth, bytes read again / L2 bandwidth, FLOPs / matrix rate,
                 steps * smallest step + (steps - 1) * min(hop, alone))

- launch: the call of one tiny kernel, in the same mode and by the same clock. The fastest of many calls counts.
- bytes moved: the input, the weights and the outputs once, and the part of the bytes read again that the L2 cannot
  hold. If all of them fit in a warm L2 (on a CPU: the last cache), the L2's bandwidth replaces the memory's.
- bytes read again: the part of W_hh beyond all registers and shared memory of the chip, in every other step.
- steps: T + layers - 1, with layers in a wavefront. With two directions it is T * layers, because a layer cannot begin
  before the layer below has ended. The directions run at the same time. For packed input, T is the longest length.
- smallest step: in sequence, one warp's product, two activations, the update, and turning the state into an operand.
- hop: the fastest hop of one word between two multiprocessors, by any hand-over. See `measure_hop`.
- alone: half of the time in which one multiprocessor, by its share of the matrix rate, makes the products of one row's
  step. If longer, it is half of the time to read the part of W_hh that the multiprocessor cannot hold.

Batch rows do not wait for each other, so more rows add FLOPs and no hop. Multiprocessors that share a row's step wait
for a hop. They can multiply and read during the hop, so only the hop counts. A multiprocessor that makes the step alone
can begin once the first unit of the previous step is finished. That unit has waited for the step before. Therefore the
products of a step have the time of two steps, and half of it counts. A weight read in that time can serve both steps.

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
from .record import Row, TimingsCsv, machine_name

ROUNDS = 30
PART, PARTS = 8192, 32  # 1 MiB of int32: a state that all programs read
PROGRAMS, ROW = 2, 8  # for a hop: each program sends four elements of fp16, which are one word
STEPS, FEWER_STEPS = 1000, 125
_READ = 128 * 3e9  # most bytes a second into a multiprocessor: twice the 64 a cycle of NVIDIA GPUs
_REGISTERS = 256 << 10  # bytes of a multiprocessor's registers, on every NVIDIA GPU since Kepler


@dataclass(frozen=True)
class Floors:
    """The rates and latencies of a machine, from which floors follow.

    Attributes:
        memory, l2: bytes a second.
        matrix: FLOPs a second, by (dtype, precision) as in a row.
        launch: seconds, by mode.
        hop: seconds of a hop of one word from one multiprocessor to another. 0 if unknown, which leaves hops out.
        step: seconds of a step of the smallest GRU. 0 if unknown.
        multiprocessors: their number.
        on_chip: bytes of registers and shared memory of one multiprocessor. 0 if unknown.
        l2_bytes: capacity of the L2.
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
        """Return the floor of a call in milliseconds, in mode "host" of the host's part. Empty if a rate is missing."""
        row = case.row()
        if mode not in self.launch or (row.dtype, row.precision) not in self.matrix:
            return ""
        if mode == "host":
            return 1000 * self.launch[mode]
        rate = self.matrix[row.dtype, row.precision]
        moved, again, flops = self._work(case)
        bandwidth = self.l2 if l2 == "warm" and moved <= self.l2_bytes else self.memory
        steps = case.steps + case.layers - 1 if case.directions == 1 else case.steps * case.layers
        w_hh = 3 * case.hidden**2
        alone = max(2 * w_hh * self.multiprocessors / rate, (w_hh * case.dtype.itemsize - self.on_chip) / _READ) / 2
        recurrence = steps * self.step + (steps - 1) * min(self.hop, alone)
        return 1000 * (self.launch[mode] + max(moved / bandwidth, again / self.l2, flops / rate, recurrence))

    def _work(self, case: Case) -> tuple[int, int, int]:
        """Return the bytes moved, the bytes read again, and the FLOPs."""
        size, directions = case.dtype.itemsize, case.directions
        inputs = [case.inputs] + [directions * case.hidden] * (case.layers - 1)
        weights = directions * sum(3 * case.hidden * (width + case.hidden) for width in inputs)
        cells = case.layers * directions
        states = cells * case.batch * case.hidden * size * (2 if case.is_streaming else 1)
        sequences = (case.inputs + directions * case.hidden) * case.total_steps * size
        beyond = 3 * case.hidden**2 * size - self.multiprocessors * self.on_chip
        beyond = max(0, beyond) if self.on_chip else 0
        rereads = (case.steps - 1) // 2 * cells
        moved = sequences + weights * size + states + rereads * max(0, beyond - self.l2_bytes)
        return moved, rereads * beyond, case.total_steps * 2 * weights

    def __str__(self) -> str:
        words = [f"memory {self.memory / 1e9:.0f} GB/s", f"L2 {self.l2 / 1e9:.0f} GB/s"]
        words += [f"{dtype} {precision} {rate / 1e12:.2f} TFLOP/s" for (dtype, precision), rate in self.matrix.items()]
        words += [f"{mode} launch {1e6 * seconds:.1f} us" for mode, seconds in self.launch.items()]
        words += [f"hop {1e6 * self.hop:.2f} us, smallest step {1e9 * self.step:.0f} ns"] * bool(self.hop)
        return ", ".join(words)


def load_or_measure(out: pathlib.Path, device: str, remeasure: bool = False) -> Floors:
    """Return the floors of this machine from the CSV in the folder ``out``, or measure them and write that CSV."""
    report = TimingsCsv(out / f"floors-{machine_name(device)}.csv", device)
    if remeasure or not _last_run(report):
        for row in _measure(device):
            report.add(row)
    return _floors(_last_run(report), device)


def _last_run(report: TimingsCsv) -> list[dict[str, str]]:
    """Return the rows of the last complete run on this GPU. A complete run ends with the eager launch."""
    rows = [row for row in report.rows() if row["gpu_name"] == report.environment["gpu_name"]]
    complete = [row["run_id"] for row in rows if (row["provider"], row["mode"]) == ("floor.launch", "eager")]
    return [row for row in rows if complete and row["run_id"] == complete[-1]]


def _floors(rows: list[dict[str, str]], device: str) -> Floors:
    rates = {"matrix": {}, "launch": {}}
    for row in rows:
        name = row["provider"].removeprefix("floor.")
        # The seconds of one unit, by the 20th percentile: no measurement may be faster than a floor.
        seconds = float(row["p20_ms"]) / 1000 / float(row["config"].split()[0])
        if name == "launch":
            rates[name][row["mode"]] = seconds
        elif name == "matrix":
            rates[name][row["dtype"], row["precision"]] = 1 / seconds
        else:
            rates[name] = seconds if name in ("hop", "step") else 1 / seconds
    if device == "cpu":
        return Floors(**rates, l2_bytes=_cpu_cache_bytes())
    gpu, l2_bytes = find_device(torch.device(device)), torch.cuda.get_device_properties(0).L2_cache_size
    return Floors(**rates, multiprocessors=gpu.sms, on_chip=gpu.shared_memory + _REGISTERS, l2_bytes=l2_bytes)


def _cpu_cache_bytes() -> int:
    """Return the size of the CPU's largest cache, or 0 if Linux does not report it. With 0 the memory's rate counts."""
    sizes = [path.read_text().strip() for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=0)


def _measure(device: str) -> Iterator[Row]:
    """Yield a row for each rate or latency. ``config`` has the amount of work in a call, with its unit."""

    def timed(name: str, amount: int, unit: str, call: Callable, once=None, **about) -> Row:
        once = once or clock(device)
        calls = 20 if name == "launch" else 1  # The fastest call counts, because a busy host delays most of them.
        taken = samples({name: [call]}, ROUNDS, lambda call: min(once(call) for _ in range(calls)), seconds=2.0)
        return Row(provider=f"floor.{name}", config=f"{amount} {unit}", **about, **quantiles(taken[name]).columns())

    def copy(size: int) -> Callable:
        source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
        return functools.partial(target.copy_, source)

    size, n, precisions = (2 << 30, 8192, PRECISIONS) if device == "cuda" else (256 << 20, 1024, ("fp32",))
    yield timed("memory", 2 * size, "bytes", copy(size))
    for case in [Case(precision, 1, 1, 1) for precision in precisions]:
        # Zeros take the least power, so that the clock stays up.
        multiply = functools.partial(torch.matmul, *torch.zeros(2, n, n, device=device, dtype=case.dtype))
        with case.pinned():
            row = timed("matrix", 2 * n**3, "FLOPs", multiply, dtype=case.row().dtype, precision=case.row().precision)
        yield row
    # `fill_` launches a kernel. `zero_` would be a memset, whose replay takes longer than a kernel's.
    launch = functools.partial(torch.zeros(32, device=device).fill_, 1.0)
    if device == "cuda":
        numbers = torch.ones(PART * PARTS, dtype=torch.int32, device=device)
        gpu, rounds = find_device(numbers.device), 20
        programs = 2 * gpu.sms
        result = torch.zeros(programs, dtype=torch.int32, device=device)
        options = {"PART": PART, "PARTS": PARTS, "num_warps": 16}
        read = Launch(read_shared, (programs,), (numbers, result, rounds), options)
        yield timed("l2", programs * rounds * numbers.nbytes, "bytes", read.start)
        assert (result == rounds * numbers.numel()).all(), (
            "some programs did not read all of the source: the L2 rate would be wrong"
        )
        w, h = torch.zeros(16, 16, dtype=torch.float16, device=device), torch.zeros(16, 8, device=device)
        steps = Launch(smallest_steps, (1,), (w, h, 1 << 15), {"num_warps": 1})
        yield timed("step", 1 << 15, "steps", steps.start)
        yield measure_hop(ROUNDS)
        yield timed("launch", 1, "launch", capture_graph(launch)[0], mode="graph")
    else:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # on a busy CPU, several threads wait for each other longer than the copy takes
        yield timed("l2", threads * 2 << 18, "bytes", copy(1 << 18))
        torch.set_num_threads(threads)
    yield timed("launch", 1, "launch", launch, host_clock, mode="host")
    yield timed("launch", 1, "launch", launch)


class Hops:
    """A launch of ``steps`` hops, with a check that it ends with the known answer."""

    def __init__(self, handover: str, steps: int, device: torch.device):
        config = GridConfig(
            units=ROW // PROGRAMS, programs=PROGRAMS, batch=1, rows=1, tiles=1, copies=1, slices=1, register_tiles=0,
            handover=handover,
        )  # fmt: skip
        mailbox = Mailbox(config, 1, 1, torch.float16)
        words = torch.empty(mailbox.size(steps), dtype=torch.int64, device=device)
        self._steps, self._result = steps, torch.zeros(PROGRAMS, dtype=torch.int32, device=device)
        words_of_tile = exchange.WordLayout(
            BITS=16, PARTS=4, WORDS_PER_ROW=ROW // 8, WORDS_PER_SEGMENT=4, ROWS=1, PROBE=handover == "probe"
        )
        constants = {
            "PROGRAMS": PROGRAMS, "ROW": ROW, "BATCH": 1, "SLICES": 1, "words": words_of_tile,
            "num_warps": 1, "num_stages": 1, "launch_cooperative_grid": True,
        }  # fmt: skip
        arguments = words, hang.get_watchdog(device).watch, self._result, steps
        self.launch = Launch(hop_steps, (PROGRAMS,), arguments, constants, mailbox.clear(words, steps))

    def is_right(self, call: Callable[[], object]) -> bool:
        """Return whether all programs end with the known answer in ``call``, which starts this launch.

        Raises:
            RuntimeError: a program gave up waiting.
        """
        self._result.zero_()
        call()
        results = self._result.tolist()  # waits for the device
        hang.raise_if_hung()
        return results == [answer(self._steps)] * PROGRAMS


@functools.cache
def answer(steps: int) -> int:
    """Return the final result of every program of `hop_steps`, computed without a hand-over."""
    element = torch.arange(ROW, device="cpu")
    history = 0
    for _ in range(steps):
        halves = (((history >> 12) + (element & 127)) & 1023).half().view(torch.int32)
        history = (history * 5 + int(halves.sum()) + 2**31) % 2**32 - 2**31
    return history


def measure_hop(rounds: int) -> Row:
    """Return the row of the fastest hand-over's hop. Only a hand-over that is right before and after timing counts.

    A launch of many hops and a launch of an eighth of them are timed in CUDA graphs, each with the clearing of its
    mailbox. A hop is the difference of their times over the difference of their steps. This cancels the cost of a
    launch. A hop includes the work of a step: the sum of the received words, and for "flag" the clearing of a slot.

    Raises:
        RuntimeError: no hand-over is right.
    """
    device, hops, reasons = torch.device("cuda"), {}, []
    for handover in HANDOVERS:
        launches = [Hops(handover, steps, device) for steps in (FEWER_STEPS, STEPS)]
        try:
            replays = [capture_graph(each.launch.start)[0] for each in launches]
            are_right = functools.partial(map, Hops.is_right, launches, replays)
            if all(are_right()):
                calls = {i: [replay] for i, replay in enumerate(replays)}
                taken = samples(calls, rounds, clock("cuda"), seconds=2.0)
                hops[handover] = quantiles([(b - a) / (STEPS - FEWER_STEPS) for a, b in zip(*taken.values())])
            if not all(are_right()):
                hops.pop(handover, None)
                reasons.append(f"{handover}: wrong result")
        except RuntimeError as error:
            reasons.append(f"{handover}: {error}")
    if not hops:
        raise RuntimeError(f"no hand-over works on this GPU: {'; '.join(reasons)}")
    best = min(hops, key=lambda handover: hops[handover].p20)
    return Row(provider="floor.hop", config=f"1 hops by {best}", mode="graph", **hops[best].columns())
