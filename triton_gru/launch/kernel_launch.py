"""What a call starts on the GPU, as values: started, compiled, or made ready to be started again on other memory."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from ..triton_versions import COMPILER_OPTIONS, is_launcher_known


class Clear(NamedTuple):
    """``words.fill_(value)``."""

    words: Tensor
    value: int


class Product(NamedTuple):
    """``out = x w^T`` by cuBLAS, in the place of a launch.

    Attributes:
        x: [..., ..., I], its rows in the order of ``out``. They are copied first where they are not evenly apart.
        w: [N, I]
        out: [rows, N], contiguous.
    """

    x: Tensor
    w: Tensor
    out: Tensor

    def start(self) -> None:
        torch.mm(self.x.reshape(-1, self.x.size(-1)), self.w.t(), out=self.out)

    def compile(self) -> None:
        """There is nothing to compile."""


class Launch(NamedTuple):
    """One kernel launch: ``kernel[programs](*args, **constants)``, once ``clear`` is done.

    `COMPILER_OPTIONS` are passed beside the constants.
    """

    kernel: object
    programs: tuple[int, ...]
    args: tuple
    constants: dict
    clear: Clear | None = None

    def start(self):
        """As Triton's own launch does, returns the compiled kernel."""
        if self.clear is not None:
            self.clear.words.fill_(self.clear.value)
        return self.kernel[self.programs](*self.args, **self.constants, **COMPILER_OPTIONS)

    def compile(self):
        """What Triton makes of it, by the path of a real launch up to the moment it would start."""
        return self.kernel.warmup(*self.args, grid=self.programs, **self.constants, **COMPILER_OPTIONS)

    def make_starter(self) -> Callable[..., None]:
        """Starts the kernel with other arguments of the same kinds, in place of tensors the addresses of such.

        It does not ask what they are: an address is to be as much of a multiple of 16 as the tensor's is.
        """
        constants = [self.constants[name] for name in self.kernel.arg_names[len(self.args) :]]
        grid = (*self.programs, 1, 1)[:3]
        compiled = self.compile()
        observed = compiled[grid]  # which loads it, too
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
        stream, device = driver.active.get_current_stream, driver.active.get_current_device()
        hooks = knobs.runtime
        if not is_launcher_known():
            return lambda *args: observed(*args, *constants)

        def start(*args) -> None:
            if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler's
                observed(*args, *constants)
            else:
                run(*grid, stream(device), function, metadata, None, None, None, *args, *constants)

        return start
