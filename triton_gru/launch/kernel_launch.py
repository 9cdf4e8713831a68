"""Descriptions of launches, which can be started, compiled, or made into functions that take other data pointers."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from ..triton_versions import COMPILER_OPTIONS, is_launcher_known


class Fill(NamedTuple):
    """A fill of memory before a launch: ``words.fill_(value)``."""

    words: Tensor
    value: int


class Product(NamedTuple):
    """A matrix product by cuBLAS, ``out = x w^T``.

    Attributes:
        x: [..., I], with rows in the order of ``out``. It is copied first if one stride cannot describe all rows.
        w: [N, I].
        out: [rows, N], contiguous.
    """

    x: Tensor
    w: Tensor
    out: Tensor

    def start(self) -> None:
        """Start the product on the current stream."""
        torch.mm(self.x.reshape(-1, self.x.size(-1)), self.w.t(), out=self.out)

    def compile(self) -> None:
        """Do nothing, as cuBLAS is compiled already. `Launch` has this method, too."""


class Launch(NamedTuple):
    """A kernel launch: ``kernel[programs](*args, **constants)``, after ``fill``.

    Attributes:
        kernel: the `triton.jit` function.
        programs: number of programs, by dimension.
        args: the kernel's first arguments: tensors, and numbers.
        constants: the other arguments, which the kernel is compiled for, and options such as ``num_warps``.
            `COMPILER_OPTIONS` are passed, too.
        fill: memory to fill before the launch, or None.
    """

    kernel: object
    programs: tuple[int, ...]
    args: tuple
    constants: dict
    fill: Fill | None = None

    def start(self):
        """Start the launch on the current stream, and return the compiled kernel, as Triton does."""
        if self.fill is not None:
            self.fill.words.fill_(self.fill.value)
        return self.kernel[self.programs](*self.args, **self.constants, **COMPILER_OPTIONS)

    def compile(self):
        """Return the compiled kernel, as a real launch would compile it, without starting it."""
        return self.kernel.warmup(*self.args, grid=self.programs, **self.constants, **COMPILER_OPTIONS)

    def make_starter(self) -> Callable[..., None]:
        """Return a function that starts the kernel with other values of ``args``. Addresses stand for tensors.

        The function does not fill the memory of ``fill``, and does not check its arguments. If the address of a tensor
        in ``args`` is a multiple of 16, the address that stands for it must be one, too. Other arguments must have the
        same types as in ``args``. They must have the same properties that Triton specializes for, such as being 1 or a
        multiple of 16.
        """
        constants = [self.constants[name] for name in self.kernel.arg_names[len(self.args) :]]
        grid = (*self.programs, 1, 1)[:3]
        compiled = self.compile()
        start_with_hooks = compiled[grid]  # this also loads the kernel onto the device
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
        get_stream, device = driver.active.get_current_stream, driver.active.get_current_device()
        hooks = knobs.runtime
        if not is_launcher_known():
            return lambda *args: start_with_hooks(*args, *constants)

        def start(*args) -> None:
            if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler has set hooks
                start_with_hooks(*args, *constants)
            else:
                run(*grid, get_stream(device), function, metadata, None, None, None, *args, *constants)

        return start
