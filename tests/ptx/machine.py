"""Executes PTX on the memory of this process: builds the machine in ``machine/`` with gcc, and explains its reports.

`execute` runs one launch under one `Schedule`. It raises `Fault` if the launch breaks a rule (`FAULTS`), and otherwise
returns an `Outcome` with the counted work. Exception: `NOTES` and forgiven faults are only in the `Outcome`. The PTX is
translated by ``translate.py`` first.
"""

import ctypes
import dataclasses
import functools
import hashlib
import os
import pathlib
import random
import shutil
import subprocess
from collections.abc import Collection, Iterable

import numpy as np

from .translate import ELEMENTS, OPERATIONS, ORDERS, SPECIAL, Program, find_waits, translate

# The kinds of faults, in the order in which the machine numbers them. tests/ptx/README.md describes them.
# SHARED_NOT_WAITED_FOR: access to bytes that a pending cp.async writes. SHARED_NOT_FENCED: a wgmma reads what a thread
# has stored, without a fence.
# DIVERGED: only a part of a warp executes an aligned instruction. LEFT_BARRIER: a warp has returned before a barrier.
# LEFT_UNDERWAY: a warp returns with a pending copy or product. ENDLESS: the launch takes too many instructions.
FAULTS = """\
OUT_OF_BOUNDS MISALIGNED RACE_BETWEEN_CTAS RACE_IN_CTA CONSTANT_WRITTEN STORED_TWICE
SHARED_OUT_OF_BOUNDS SHARED_MISALIGNED SHARED_UNWRITTEN SHARED_NOT_WAITED_FOR SHARED_NOT_FENCED SHARED_READ_AFTER_WRITE
SHARED_WRITE_AFTER_READ SHARED_WRITE_AFTER_WRITE SHARED_RACE_IN_WARP
UNDEFINED DIVERGED LEFT_BARRIER LEFT_UNDERWAY ENDLESS
""".split()
# Kinds that are reported and fail no launch. STORED_TWICE: two warps store the same value at the same address.
NOTES = {"STORED_TWICE"}
RACES = {"RACE_BETWEEN_CTAS", "RACE_IN_CTA"}

# The operand that is undefined where UNDEFINED is reported. A pending wgmma is one that has not been waited for.
UNDEFINED = ["SOURCE", "PREDICATE", "ACCUMULATOR", "REGISTER_OF_A_PENDING_WGMMA"]

_SOURCES = pathlib.Path(__file__).parent / "machine"


class Fault(Exception):
    """An error for a launch with a fault. The message ends with the schedule that shows the fault again."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The order of everything that a GPU promises no order for. Equal schedules give the same order.

    Attributes:
        seed: the seed of every choice.
        quantum: the largest number of instructions that a warp executes in a turn.
        delay: how late relaxed stores arrive. With 0, they arrive at once. Otherwise some of the pending stores arrive
            after a turn, with probability 1 / (``delay`` + 1).
        sleeps: whether warps may fall far behind.
        reconverge_late: whether diverged lanes of a warp run in any order. Otherwise the lanes at the lowest
            instruction run first, except in one turn of 16.
        reconverge_early: whether the lanes at the lowest instruction run first in every turn, so that lanes meet where
            their paths do. A warp whose lanes wait for each other may then never end. ``reconverge_late`` overrides
            this.
        resident: how many CTAs run at a time, or 0 for all.
        ns_per_instruction: how much ``%globaltimer`` advances with each instruction of a warp.
        error: the share of the error that the PTX manual allows an approximation.
    """

    seed: int
    quantum: int = 64
    delay: int = 0
    sleeps: bool = False
    reconverge_late: bool = False
    reconverge_early: bool = False
    resident: int = 0
    ns_per_instruction: float = 1.0
    error: float = 0.0

    @classmethod
    def draw(cls, seed: int, cooperative: bool, **fixed) -> "Schedule":
        """Return a schedule drawn from ``seed``, with the ``fixed`` fields.

        All CTAs of a cooperative launch run at a time, and one to four CTAs of any other launch. Fields that are
        neither drawn nor fixed have their defaults.
        """
        draw = random.Random(seed)
        drawn = {
            "quantum": draw.choice((1, 8, 64, 1000)),
            "delay": draw.choice((0, 3, 30, 300)),
            "sleeps": draw.random() < 0.5,
            "reconverge_late": draw.random() < 0.5,
            "resident": 0 if cooperative else draw.randint(1, 4),
        }
        return cls(seed, **drawn | fixed)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The work of warps.

    Attributes:
        instructions: instructions of warps. An instruction counts once for each group of diverged lanes.
        read: bytes of global memory read, except those in ``received``. An instruction of a warp reads sectors of 32
            bytes. No cache is modelled.
        received: bytes read by relaxed loads, with which a program waits for others' stores. Acquire loads and atomic
            additions count, too.
        written: bytes of global memory written.
        shared_read, shared_written: bytes of shared memory.
        matrix, flops: instructions of the matrix unit, and the floating-point operations in them.
        fma: fused multiply-adds of fp32, each of a warp.
        barriers: barriers of the CTA, counted by every warp.
    """

    instructions: int
    read: int
    received: int
    written: int
    shared_read: int
    shared_written: int
    matrix: int
    flops: int
    fma: int
    barriers: int


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The bytes of one piece of memory that a launch read, received and wrote, as in `Counts` but with waits."""

    read: int
    received: int
    written: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The work of a launch that had no fault.

    Attributes:
        kernel: the kernel's name.
        ctas, warps: the number of CTAs, and of warps of a CTA.
        made: the work of all warps. A loop that waits for others' stores counts as its best pass.
        waited: the work of all other passes of these loops.
        busiest: the share of ``made`` that the warp with the most instructions has.
        by_warp: the instructions in ``made`` of each warp of a CTA, in the CTA where the warp has the most.
        most_bytes_read: the bytes in ``made`` that one CTA has read and received, in the CTA with the most.
        exchanges: how often a warp received after it had sent, in the warp with the most. To send is a relaxed store or
            an atomic addition, and to receive a relaxed or acquire load, each of global memory.
        memory: the traffic of each piece of memory, by its name in the argument ``memory`` of `execute`. Pieces that
            overlap share one `Traffic`, and empty pieces have none.
        notes: the reports of `NOTES` and of forgiven faults, as (kind, line of source).
        executed: the instructions of all warps, waits included.
        length: the number of instructions in the kernel.
    """

    kernel: str
    ctas: int
    warps: int
    made: Counts
    waited: Counts
    busiest: Counts
    by_warp: tuple[int, ...]
    most_bytes_read: int
    exchanges: int
    memory: dict[str, Traffic]
    notes: list[tuple[str, str]]
    executed: int
    length: int


def execute(
    text: str,
    arguments: list[int],
    memory: dict[str, tuple[int, int]],
    grid: tuple[int, int, int],
    num_warps: int,
    shared: int,
    schedule: Schedule,
    max_instructions: int = 400_000_000,
    forgiven: Collection[str] = (),
) -> Outcome:
    """Execute the kernel of a PTX ``text`` on memory of this process.

    Args:
        arguments: the kernel's arguments, as bits.
        memory: (first address, end) of the memory that the kernel may touch, by names that the caller chooses.
        shared: bytes of shared memory of a CTA.
        max_instructions: how many instructions all warps may execute before the launch counts as endless.
        forgiven: kinds of `FAULTS` that are noted and fail no launch. If races between CTAs are among them, the
            instructions of other libraries are executed, too (``peers`` of `translate`).

    Raises:
        Fault: the launch has a fault that is neither in `NOTES` nor forgiven.
        translate.UnknownInstruction: the PTX contains an instruction that the machine cannot execute.
        ValueError: the grid has more than 65,534 CTAs, or the kernel takes another number of arguments.
    """
    loaded = _load(text, "RACE_BETWEEN_CTAS" in forgiven)
    noted = NOTES.union(forgiven)
    program = loaded.program
    ctas = grid[0] * grid[1] * grid[2]
    if ctas >= 0xFFFF:
        raise ValueError(f"the machine runs at most 65,534 CTAs, got {ctas}")
    if len(arguments) != len(program.parameters):
        raise ValueError(f"{program.name} takes {len(program.parameters)} arguments, got {len(arguments)}")
    extents = _merge_extents(memory.values())
    ranges = (_Range * max(1, len(extents)))(*((low, high - low) for low, high in extents))
    reports = (_Report * 64)()
    by_warp = (ctypes.c_int64 * num_warps)()
    constants = loaded.constant_values.copy()
    for constant, index in loaded.parameters:
        constants[constant] = arguments[index] & (1 << 64) - 1
    launch = _Launch(
        instructions=loaded.instructions.ctypes.data, operands=loaded.operands.ctypes.data,
        n_rows=program.rows, n_constants=len(constants), constant_rows=loaded.constant_rows.ctypes.data,
        constant_kinds=loaded.constant_kinds.ctypes.data, constant_values=constants.ctypes.data,
        grid=(ctypes.c_int32 * 3)(*grid), n_warps=num_warps, shared_bytes=shared,
        n_ranges=len(extents), ranges=ctypes.addressof(ranges),
        max_instructions=max_instructions, most_reports=len(reports), reports=ctypes.addressof(reports),
        by_warp=ctypes.addressof(by_warp), forgiven=sum(1 << FAULTS.index(kind) for kind in noted),
        **dataclasses.asdict(schedule),
    )  # fmt: skip
    _machine().run(ctypes.byref(launch))
    explained = [_explain(report, program, extents) for report in reports[: launch.n_reports]]
    faults = [f"{kind} in {program.name}, {message}" for kind, _, message in explained if kind not in noted]
    if faults:
        raise Fault("\n".join([*faults[:6], str(schedule)]))  # more lines than six rarely help

    def traffic_at(address: int) -> Traffic:
        (touched,) = (piece for piece in ranges[: len(extents)] if 0 <= address - piece.base < piece.bytes)
        return Traffic(touched.read, touched.received, touched.written)

    return Outcome(
        program.name, ctas, num_warps,
        *(Counts(*(getattr(counts, name) for name, _ in counts._fields_)) for counts in launch.counts()),
        tuple(by_warp), launch.most_bytes_read, launch.exchanges,
        {name: traffic_at(first) for name, (first, end) in memory.items() if first < end},
        [(kind, where) for kind, where, _ in explained], launch.executed,
        len(program.instructions),
    )  # fmt: skip


# The order of the accesses of a race, as memory.h numbers it. "": the report has no such detail.
_RACE_DETAILS = ["", ", a write after a write", ", a write after a read", ", a read after a write"]


def _explain(report: "_Report", program: Program, extents: list[tuple[int, int]]) -> tuple[str, str, str]:
    """Return the kind of a report, the line of Python source, and a description.

    ``extents`` are the first addresses and the ends of the memory that the launch may touch.
    """
    kind, instruction = FAULTS[report.kind], program.instructions[report.pc]
    message = f"{instruction.where}, line {instruction.line} of the PTX, {instruction.text[:120]!r}"
    message += f": CTA {report.cta}, warp {report.warp}"
    if report.lane >= 0:
        message += f", lane {report.lane}"
    if kind == "UNDEFINED":
        message += f", {UNDEFINED[report.other].lower().replace('_', ' ')} {report.address}"
    elif OPERATIONS[instruction.operation] == "load_parameter":
        message += f", address {report.address} of no kernel argument"
    elif kind.startswith("SHARED"):
        message += f", address {report.address}"
        if report.other >= 0:
            other = program.instructions[report.other]
            message += f", against {other.where}, line {other.line}, {other.text[:120]!r}"
    elif kind in ("OUT_OF_BOUNDS", "MISALIGNED", "STORED_TWICE") or kind.startswith("RACE"):
        # The extent with the nearest limit is that of the tensor that the access probably meant.
        low, high = min(
            extents, key=lambda extent: min(abs(report.address - limit) for limit in extent), default=(0, 0)
        )
        message += f", {report.address - low:+d} bytes from a tensor's start, {report.address - high:+d} from its end"
        message += _RACE_DETAILS[max(0, report.other)]
    return kind, instruction.where, f"{message}; {report.count} times"


def _merge_extents(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the extents in order of their addresses. Empty extents are left out, and overlapping ones merged."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(extent for extent in extents if extent[1] > extent[0]):
        if merged and low < merged[-1][1]:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged


class _Loaded:
    """A translated program, as the arrays that the machine reads."""

    def __init__(self, text: str, peers: bool):
        self.program = program = translate(text, peers)
        loops = {}  # index of an instruction -> the innermost loop around it that only waits
        for first, last in find_waits(program):
            loops |= dict.fromkeys(range(first, last + 1), (first, last))
        operands, records = [], []
        for index, instruction in enumerate(program.instructions):
            operation, guard, negated, aligned, extra, results, sources, *_ = instruction
            # The fields of Instruction in machine.h, in order.
            records += [operation, guard, negated, aligned, len(results), len(sources), len(operands), *extra]
            records += loops.get(index, (-1, -1))
            operands += results + sources
        self.instructions = np.array(records, np.int32)
        self.operands = np.array([*operands, 0], np.int32)  # 0: so that the array is never empty
        kinds = [1 + SPECIAL.index(value) if kind == "special" else 0 for kind, value in program.constants.values()]
        values = [value if kind == "value" else 0 for kind, value in program.constants.values()]
        self.constant_rows = np.array(list(program.constants), np.int32)
        self.constant_kinds = np.array(kinds, np.int32)  # as in machine.h
        self.constant_values = np.array(values, np.uint64)
        # (index among the constants, index of the argument): `execute` sets these values.
        self.parameters = [
            (i, value) for i, (kind, value) in enumerate(program.constants.values()) if kind == "parameter"
        ]


_load = functools.lru_cache(maxsize=512)(_Loaded)

# The structures of machine.h, with the same fields in the same order.
_I, _P = ctypes.c_int32, ctypes.c_void_p


class _Counts(ctypes.Structure):
    _fields_ = [(field.name, ctypes.c_int64) for field in dataclasses.fields(Counts)]


class _Range(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("touched", _P),
        ("read", ctypes.c_int64), ("received", ctypes.c_int64), ("written", ctypes.c_int64),
    ]  # fmt: skip


class _Report(ctypes.Structure):
    _fields_ = [(name, _I) for name in ("kind", "pc", "cta", "warp", "lane", "other")] + [
        ("address", ctypes.c_uint64), ("count", ctypes.c_uint64)
    ]  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = [
        ("instructions", _P), ("operands", _P), ("n_rows", _I), ("n_constants", _I),
        ("constant_rows", _P), ("constant_kinds", _P), ("constant_values", _P),
        ("grid", _I * 3), ("n_warps", _I), ("shared_bytes", _I), ("n_ranges", _I), ("ranges", _P),
        ("seed", ctypes.c_uint64), ("max_instructions", ctypes.c_int64),
        ("ns_per_instruction", ctypes.c_double), ("error", ctypes.c_double),
        ("resident", _I), ("reconverge_late", _I), ("reconverge_early", _I),
        ("quantum", _I), ("delay", _I), ("sleeps", _I), ("forgiven", ctypes.c_uint64),
        ("n_reports", _I), ("most_reports", _I), ("reports", _P), ("executed", ctypes.c_int64),
        ("made", _Counts), ("waited", _Counts), ("busiest", _Counts), ("most_bytes_read", ctypes.c_int64),
        ("exchanges", ctypes.c_int64), ("by_warp", _P),
    ]  # fmt: skip

    def counts(self) -> tuple[_Counts, _Counts, _Counts]:
        """Return the first three counts of an `Outcome`."""
        return self.made, self.waited, self.busiest


@functools.cache
def _machine() -> ctypes.CDLL:
    """Return the machine's library. Build it first if the user's cache has no library of these sources.

    Raises:
        RuntimeError: gcc is missing, or fails.
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        raise RuntimeError("executing PTX needs gcc, which is not on the PATH: install it (Debian: apt install gcc)")
    numbered = {"OP_": OPERATIONS, "FAULT_": FAULTS, "UNDEFINED_": UNDEFINED}
    # The numbers that Python and C share, as enums in names.h.
    enums = [ORDERS, ELEMENTS, *([prefix + name for name in names] for prefix, names in numbered.items())]
    header = "".join(f"enum {{ {', '.join(names)} }};\n" for names in enums)
    sources = sorted(_SOURCES.iterdir())
    key = hashlib.sha256(header.encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "triton_gru"
    library = cache / f"ptx-machine-{key}.so"
    if not library.exists():
        build = cache / f"build-{os.getpid()}"
        build.mkdir(parents=True, exist_ok=True)
        try:
            (build / "names.h").write_text(header)
            flags = "-O2 -march=native -ffp-contract=off -fno-strict-aliasing -shared -fPIC -Wall".split()
            built = build / "machine.so"
            command = [gcc, *flags, f"-I{build}", "-o", str(built), str(_SOURCES / "machine.c"), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"gcc could not build the machine that executes PTX:\n{result.stderr}")
            built.replace(library)
        finally:
            shutil.rmtree(build)
    machine = ctypes.CDLL(str(library))
    machine.run.argtypes, machine.run.restype = [ctypes.POINTER(_Launch)], None
    return machine
