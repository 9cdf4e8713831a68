"""Shared memory beside the compiler's, and a check of layouts, for kernels that use `fragments`."""

import re
from collections import defaultdict

from triton.compiler.compiler import make_backend

_SIZE = re.compile(r"sub\.u32 %r\d+, %r\d+, (\d+); // kept in shared memory")
_PRODUCT = 'elementwise_inline_asm "mma.sync'
_OPERANDS = re.compile(_PRODUCT.replace(".", r"\.") + r'[^"]*".*?tensor<(\d+)x8x4xi32, (#\w+)>')


def add_shared_memory(kernel):
    """Return ``kernel``, changed: its launches reserve the shared memory that `fragments.shared_address` uses.

    No hook of Triton gets a compiled kernel before its launch. But a kernel calls ``create_binder`` once for each
    device, to fill ``device_caches``, and ``create_binder`` sets ``kernel.compile``. So the replacement wraps
    ``compile`` right after that.
    """

    def create_binder():
        binder = type(kernel).create_binder(kernel)
        compile_ = kernel.compile
        kernel.compile = lambda *args, **options: _reserve_memory(compile_(*args, **options))
        return binder

    kernel.device_caches = defaultdict(create_binder)
    return kernel


def _reserve_memory(compiled):
    """Return ``compiled``, changed: its launches reserve the bytes that its PTX asks for, after the compiler's bytes.

    `_SIZE` finds the number of bytes in the PTX of `fragments.shared_address`. A kernel that asks for no bytes, or has
    no PTX, is returned unchanged.

    Raises:
        RuntimeError: see `_check_layout`.
    """
    if "ptx" not in compiled.asm:
        return compiled
    _check_layout(compiled.asm["ttgir"])
    if size := max(map(int, _SIZE.findall(compiled.asm["ptx"])), default=0):
        metadata = compiled.metadata
        compiled.metadata = metadata._replace(shared=-(-metadata.shared // 16) * 16 + size)
        compiled.packed_metadata = make_backend(metadata.target).pack_metadata(compiled.metadata)
    return compiled


def _check_layout(ttgir: str) -> None:
    """Raise RuntimeError if elements of an operand are not in the lanes that the matrix unit takes them from.

    Raise it also if operands have another shape or type than [warps, 8, 4] of int32.
    """
    # The first operand of each product is enough, because all operands of an assembly have one layout. The pattern
    # does not find operands of another shape or type. So it may find fewer operands than there are products.
    first_operands = _OPERANDS.findall(ttgir)
    layouts = [re.search(rf"^{name} = (.*)$", ttgir, re.MULTILINE)[1] for _, name in first_operands]
    if len(first_operands) < ttgir.count(_PRODUCT) or not all(
        _has_one_value_per_lane(layout, int(warps)) for (warps, _), layout in zip(first_operands, layouts)
    ):
        raise RuntimeError(
            "this Triton lays out the operands of products in a way that this version of triton_gru does not know: "
            f"{sorted(set(layouts))}. Install a Triton that was tested (triton_gru/SUPPORT.md)"
        )


def _has_one_value_per_lane(layout: str, warps: int) -> bool:
    """Return whether a layout gives each thread one element of a tensor [warps, 8, 4], in the order of threads.

    Triton writes this layout as a blocked or as a linear layout.
    """
    blocked = f"[1, 1, 1], threadsPerWarp = [1, 8, 4], warpsPerCTA = [{warps}, 1, 1], order = [2, 1, 0]"
    warp_basis = ", ".join(f"[{1 << i}, 0, 0]" for i in range(warps.bit_length() - 1))
    linear = f"register = [], lane = [[0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 2, 0], [0, 4, 0]], warp = [{warp_basis}]"
    return f"sizePerThread = {blocked}" in layout or linear in layout
