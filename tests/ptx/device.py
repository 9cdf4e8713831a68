"""Emulates a GPU: triton_gru treats CPU tensors as the GPU's memory, and the machine executes the kernels."""

import contextlib
import random
import struct
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from unittest import mock

import torch
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from triton_gru.launch import hang
from triton_gru.launch.kernel_launch import Launch
from triton_gru.launch.prepared import PreparedCall
from triton_gru.plan import device as devices
from triton_gru.plan import planner
from triton_gru.plan.device import Device
from triton_gru.tuning.compile_pool import AbsentDriver

from ..launches import Launches
from .machine import Outcome, Schedule, execute


class _Driver(AbsentDriver):
    """A driver for Triton. Its devices are named "emulated", so that Triton's caches separate them from real GPUs."""

    def get_current_device(self) -> str:
        return f"emulated {self.device.name}"


class EmulatedGpu:
    """A GPU whose launches the machine executes.

    Attributes:
        outcomes: the `Outcome` of each launch, in order.
        launched: the names of the kernels launched, in order.
        fixed_schedule: the fields of `Schedule` that are the same for every launch. Other fields are drawn again for
            each launch.
        max_instructions: as in `machine.execute`.
        change_ptx: a function of a kernel's name and PTX that returns the PTX to execute.
        forgiven: as in `machine.execute`.
    """

    def __init__(self, device: Device, seed: int):
        self.device = device
        self.outcomes: list[Outcome] = []
        self.launched = Launches()
        self.fixed_schedule: dict = {}
        self.max_instructions = 400_000_000
        self.change_ptx = lambda kernel, ptx: ptx
        self.forgiven: Collection[str] = ()
        self._draw = random.Random(seed)
        self._extents: dict[int, int] = {}  # first address -> end, of the input and the output of a prepared call
        self._buffers: list[weakref.ref[torch.Tensor]] = []  # of all prepared calls

    def seed(self, seed: int) -> None:
        """Draw the next schedules from ``seed``."""
        self._draw.seed(seed)

    def run(self, function, *args, grid, warmup, **options):
        """Compile a kernel and execute it. With ``warmup``, only compile it, as `JITFunction.run` does."""
        compiled = _compile(function, *args, grid=grid, warmup=True, **options)
        if not warmup:
            by_name = dict(zip(function.arg_names, args)) | options
            arguments = [by_name[name] for name in function.arg_names if compiled.src.signature[name] != "constexpr"]
            grid = grid(by_name) if callable(grid) else grid
            self._execute(compiled, arguments, _memory_of(by_name.items()), grid, options)
        return compiled

    def make_starter(self, launch: Launch) -> Callable[..., None]:
        """Return a function that executes a launch on other arguments, as `Launch.make_starter` does.

        An address may replace a tensor. The memory there is assumed to have the extent of the launch's own tensor.
        Exception: the input and the output of a call, which may be packed and have other rows. In any case the memory
        ends where the buffer of the prepared call ends. Exception: the launch's own tensors, such as weights.
        """

        # Keep addresses only, so that the tensors can be freed.
        extents = _memory_of(zip(launch.kernel.arg_names, launch.args))
        compiled, names, grid, constants = launch.compile(), launch.kernel.arg_names, launch.programs, launch.constants

        def start(*args) -> None:
            arguments, memory = [], {}
            for name, arg in zip(names, args):
                if name in extents:
                    arg = arg.data_ptr() if isinstance(arg, torch.Tensor) else arg
                    first, end = extents[name]
                    memory[name] = arg, self._extents.get(arg, arg + end - first)
                    # Lengths and offsets of packed sequences are made for each call, and are none of its buffers.
                    if arg != first and name not in ("lengths", "offsets"):
                        memory[name] = self._clip(*memory[name])
                if compiled.src.signature[name] != "constexpr":
                    arguments.append(arg)
            self._execute(compiled, arguments, memory, grid, constants)

        return start

    def allocate(self, prepared: PreparedCall, input: torch.Tensor, *args):
        """Call `PreparedCall._allocate`. Note the call's buffers, and where its input and its output begin and end.

        A prepared packed call may have other rows than the call that was prepared (see `make_starter`).
        """
        addresses, buffers, results = _allocate(prepared, input, *args)
        output = results[0] if isinstance(results, tuple) else results
        self._extents = dict(_extent(tensor) for tensor in (input, output) if tensor.numel())
        alive = [buffer for buffer in self._buffers if buffer() is not None]
        self._buffers = alive + [weakref.ref(tensor) for tensor in buffers if tensor is not None]
        return addresses, buffers, results

    def _clip(self, first: int, end: int) -> tuple[int, int]:
        """Return the part of an extent that lies in the buffer in which it begins, or an empty extent outside all."""
        for tensor in (buffer() for buffer in self._buffers):
            low, high = (0, 0) if tensor is None else _extent(tensor)
            if low <= first < high:
                return first, min(end, high)
        return first, first

    def run_program(self, launch: Launch, program: tuple[int, int, int]) -> None:
        """Execute only the program with index ``program`` of a launch.

        Use this if a launch is too large to execute, or if all its programs do the same.
        """
        compiled = launch.compile()
        signature = compiled.src.signature
        arguments = [arg for name, arg in zip(launch.kernel.arg_names, launch.args) if signature[name] != "constexpr"]
        memory = _memory_of(zip(launch.kernel.arg_names, launch.args))
        change = self.change_ptx

        def fix_program(kernel: str, ptx: str) -> str:
            """Replace the index of the program by a constant."""
            for dimension, index in zip("xyz", program):
                ptx = ptx.replace(f"%ctaid.{dimension}", str(index))
            return change(kernel, ptx)

        with mock.patch.object(self, "change_ptx", fix_program):
            self._execute(compiled, arguments, memory, (1, 1, 1), launch.constants)

    def _execute(self, compiled, arguments: list, memory: dict, grid: tuple, options: dict) -> None:
        """Execute a compiled kernel and append its `Outcome`.

        ``memory`` is as in `machine.execute`. ``options`` are the launch's constants and options.

        Raises:
            OutOfResources: the kernel needs more shared memory than the device has.
        """
        if compiled.metadata.shared > self.device.shared_memory:
            raise OutOfResources(compiled.metadata.shared, self.device.shared_memory, "shared memory")
        values = [_bits_of(argument) for argument in arguments]
        seed = self.fixed_schedule.get("seed", self._draw.getrandbits(63))
        cooperative = bool(options.get("launch_cooperative_grid"))
        schedule = Schedule.draw(cooperative=cooperative, **{"seed": seed} | self.fixed_schedule)
        host_words = {f"watchdog of {device}": _extent(dog._word) for device, dog in hang._watchdogs.items()}
        self.launched.append(compiled.metadata.name)
        scratch = [0, 0]  # the last two arguments: addresses of Triton's scratch memory, which no kernel here uses
        self.outcomes.append(
            execute(
                self.change_ptx(compiled.metadata.name, compiled.asm["ptx"]), values + scratch, memory | host_words,
                (*grid, 1, 1)[:3], compiled.metadata.num_warps, compiled.metadata.shared, schedule,
                self.max_instructions, self.forgiven,
            )
        )  # fmt: skip


_compile, _allocate = JITFunction.run, PreparedCall._allocate


def _bits_of(argument: torch.Tensor | float) -> int:
    """Return the bits of a kernel's argument: an address, an integer, or an fp32 number."""
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    return struct.unpack("<I", struct.pack("<f", argument))[0] if isinstance(argument, float) else int(argument)


def _memory_of(named: Iterable[tuple[str, object]]) -> dict[str, tuple[int, int]]:
    """Return the `_extent` of each argument that is a tensor, by name."""
    return {name: _extent(value) for name, value in named if isinstance(value, torch.Tensor)}


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the address of a tensor's first byte, and the address after its last byte."""
    first = tensor.data_ptr()
    if tensor.numel() == 0:
        return first, first
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return first, first + (last + 1) * tensor.element_size()


@contextlib.contextmanager
def emulate_gpu(device: Device, seed: int) -> Iterator[EmulatedGpu]:
    """Run triton_gru's kernels on CPU tensors, as compiled for ``device``, under schedules drawn from ``seed``."""
    emulated = EmulatedGpu(device, seed)
    replacements = (
        (JITFunction, "run", lambda function, *args, **options: emulated.run(function, *args, **options)),
        (Launch, "make_starter", lambda launch: emulated.make_starter(launch)),
        (PreparedCall, "_allocate", lambda prepared, *args: emulated.allocate(prepared, *args)),
        (driver, "_active", _Driver(device)),
        (devices, "emulated_device", device),
        # Triton stops at PTX. The changed hash separates these kernels from complete ones in Triton's cache on disk.
        (CUDABackend, "make_cubin", lambda *args: b""),
        (CUDABackend, "hash", lambda backend, original=CUDABackend.hash: original(backend) + "-only-ptx"),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in replacements:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        stack.callback(planner.clear_plan_cache)
        planner.clear_plan_cache()
        yield emulated
