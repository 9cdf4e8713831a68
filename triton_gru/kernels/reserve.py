"""Shared memory beyond what the compiler takes, and the check of a layout, for kernels with `fragments`."""

import re
from collections import defaultdict

from triton.compiler.compiler import make_backend

_SIZE = re.compile(r"sub\.u32 %r\d+, %r\d+, (\d+); // kept in shared memory")
_PRODUCT = 'elementwise_inline_asm "mma.sync'
_OPERANDS = re.compile(_PRODUCT.replace(".", r"\.") + r'[^"]*".*?tensor<(\d+)x8x4xi32, (#\w+)>')


def add_shared_memory(kernel):
    """Return ``kernel``, whose launches have the shared memory that `fragments.shared_address` calls for."""

    def create_binder():
        made = type(kernel).create_binder(kernel)
        compile_ = kernel.compile
        kernel.compile = lambda *args, **options: _with_own_memory(compile_(*args, **options))
        return made

    kernel.device_caches = defaultdict(create_binder)
    return kernel


def _with_own_memory(compiled):
    if "ptx" not in compiled.asm:
        return compiled
    _check_layout(compiled.asm["ttgir"])
    if size := max(map(int, _SIZE.findall(compiled.asm["ptx"])), default=0):
        metadata = compiled.metadata
        compiled.metadata = metadata._replace(shared=-(-metadata.shared // 16) * 16 + size)
        compiled.packed_metadata = make_backend(metadata.target).pack_metadata(compiled.metadata)
    return compiled


def _check_layout(ttgir: str) -> None:
    """Raise RuntimeError where a number of `fragments` is not in the lane that the matrix unit takes it from."""
    operands = _OPERANDS.findall(ttgir)
    layouts = [re.search(rf"^{name} = (.*)$", ttgir, re.MULTILINE)[1] for _, name in operands]
    if len(operands) < ttgir.count(_PRODUCT) or not all(
        _is_by_lanes(layout, int(warps)) for (warps, _), layout in zip(operands, layouts)
    ):
        raise RuntimeError(
            "this Triton lays out the operands of products in another way than this version of triton_gru knows: "
            f"{sorted(set(layouts))}. Install a Triton that was tested (triton_gru/SUPPORT.md)"
        )


def _is_by_lanes(layout: str, warps: int) -> bool:
    """Return whether a tensor [warps, 8, 4] has a number in each thread, in their order. Triton says so in two ways."""
    blocked = f"[1, 1, 1], threadsPerWarp = [1, 8, 4], warpsPerCTA = [{warps}, 1, 1], order = [2, 1, 0]"
    of_warp = ", ".join(f"[{1 << i}, 0, 0]" for i in range(warps.bit_length() - 1))
    linear = f"register = [], lane = [[0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 2, 0], [0, 4, 0]], warp = [{of_warp}]"
    return f"sizePerThread = {blocked}" in layout or linear in layout
