"""Tests, on a stub of the driver, that a prepared launch passes the same arguments as Triton's own launch.

Another test checks an option of the compiler: multiply-adds are fused.
"""

import ctypes
import os
import pathlib
import re
import subprocess
import sys

import pytest
import triton
from triton import knobs
from triton.runtime import driver

from triton_gru import triton_versions
from triton_gru.plan.device import KNOWN_DEVICES

from .harness import kernel_launches, set_compile_target

STUB = pathlib.Path(__file__).with_name("stub.c")
NVIDIA = pathlib.Path(triton.__file__).parent / "backends" / "nvidia"
# Invented handles. The stub only records them.
STREAM, FUNCTION = 0x55AA, 0x1234


class Launched(ctypes.Structure):
    """The struct ``launched`` of stub.c: the last launch that reached the driver."""

    _fields_ = [
        ("grid", ctypes.c_int64 * 3), ("threads", ctypes.c_int64), ("shared", ctypes.c_int64),
        ("stream", ctypes.c_int64), ("function", ctypes.c_int64), ("cooperative", ctypes.c_int64),
        ("parameters", ctypes.c_int64 * 64),
    ]  # fmt: skip


def test_a_prepared_launch_equals_tritons_launch(tmp_path):
    # Another process, so that it can have the stub as its driver.
    environment = os.environ | {"TRITON_LIBCUDA_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", __name__, str(_build_stub(tmp_path)), "block", "grid", "step"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kernel", ["block", "grid", "step"])
def test_multiply_adds_are_fused_even_if_tritons_default_is_not_to(kernel, monkeypatch):
    monkeypatch.setattr(knobs.language, "default_fp_fusion", False)
    set_compile_target(KNOWN_DEVICES["H200"])
    for launch in kernel_launches(kernel, KNOWN_DEVICES["H200"], "fp16", 64 if kernel == "block" else 512, 3):
        assert launch.compile().metadata.enable_fp_fusion


def _build_stub(folder: pathlib.Path) -> pathlib.Path:
    """Build a library of the stub and of a function that does nothing for each other function that Triton names.

    Return its path.
    """
    sources = "".join((NVIDIA / name).read_text() for name in ("driver.c", "driver.py"))
    names = set(re.findall(r"\bcu[A-Z]\w*(?= ?\()", sources)) - {"cuLaunchKernelEx"}
    others, library = folder / "others.c", folder / "libcuda.so.1"
    others.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names)))
    flags = ["-shared", "-fPIC", f"-I{NVIDIA / 'include'}", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *flags, "-o", library, STUB, others], check=True)
    return library


def check_launch(kernel: str, stub: ctypes.CDLL) -> None:
    """Raise unless `Launch.make_starter` and Triton's launcher pass the same arguments to the driver's stub.

    Both launch the same compiled kernel with invented arguments. The compared launches have the same grid, stream,
    function, parameters and attributes. Hooks have to be called, too.
    """
    launched = Launched.in_dll(stub, "launched")
    set_compile_target(KNOWN_DEVICES["H200"])
    launch = kernel_launches(kernel, KNOWN_DEVICES["H200"], "fp16", 64 if kernel == "block" else 512, 3, hx=True)[-1]
    compiled = launch.compile()

    # Triton's driver for a real GPU, except that it reports our device and stream. A module need not be loaded.
    gpu = triton.backends.backends["nvidia"].driver()
    gpu.get_current_device, gpu.get_current_stream = lambda: 0, lambda device: STREAM
    driver.set_active(gpu)
    compiled.module, compiled.function = 1, FUNCTION
    compiled._run = gpu.launcher_cls(compiled.src, compiled.metadata)

    kinds = list(compiled.src.signature.values())
    # Invented arguments, all different: addresses and integers.
    args = [0x7F0000001000 + i if kinds[i][0] == "*" else 17 + i for i in range(len(launch.args))]
    expected = [arg for arg, kind in zip(args, kinds) if kind != "constexpr"]
    # The bytes of each parameter of the kernel. The last two are addresses of scratch memory.
    sizes = [8 if kind[0] == "*" else int(kind[1:]) // 8 for kind in kinds if kind != "constexpr"] + [8, 8]
    ctypes.c_int.in_dll(stub, "n_parameters").value = len(sizes)
    (ctypes.c_int * 64).in_dll(stub, "bytes_of")[: len(sizes)] = sizes

    def record(start, *args) -> tuple:
        """Call ``start(*args)``, and return the fields of `Launched`."""
        ctypes.memset(ctypes.addressof(launched), 0xFF, ctypes.sizeof(launched))
        start(*args)
        values = (getattr(launched, name) for name, _ in launched._fields_)
        return tuple(value if isinstance(value, int) else tuple(value) for value in values)

    assert triton_versions.is_launcher_known()
    start_prepared = launch._replace(kernel=_Compiled(launch.kernel.arg_names, compiled)).make_starter()
    by_us = record(start_prepared, *args)
    grid = (*launch.programs, 1, 1)[:3]
    constants = [launch.constants[name] for name in launch.kernel.arg_names[len(args) :]]
    by_triton = record(compiled[grid], *args, *constants)
    assert by_us == by_triton
    threads, cooperative = 32 * compiled.metadata.num_warps, int(kernel == "grid")
    *attributes, parameters = by_us
    assert attributes == [grid, threads, compiled.metadata.shared, STREAM, FUNCTION, cooperative]
    assert parameters[: len(sizes)] == (*expected, 0, 0)  # kernels use no scratch memory

    called_for = []
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    for hook in hooks:
        hook.add(lambda metadata: called_for.append(metadata.get()["name"]))
    assert record(start_prepared, *args) == by_us
    assert called_for == [compiled.metadata.name] * 2
    for hook in hooks:
        hook.calls.clear()


class _Compiled:
    """A kernel that is already compiled. `Launch.make_starter` gets the compiled kernel from ``warmup``."""

    def __init__(self, arg_names: list[str], compiled):
        self.arg_names, self._compiled = arg_names, compiled

    def warmup(self, *args, grid, **constants):
        return self._compiled


if __name__ == "__main__":
    stub = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    for kernel in sys.argv[2:]:
        check_launch(kernel, stub)
