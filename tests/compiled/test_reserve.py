"""Tests of the shared memory that a kernel reserves for itself, and of the layout that its products rely on."""

import pytest

from triton_gru.kernels import reserve

from .harness import KNOWN_DEVICES, kernel_launches, set_compile_target

# A kernel, a hidden size, and the bytes reserved in fp16 for one batch row. `block`: 21 of 27 tiles of W_hh [64, 64]
# and twice the state of two rows. `grid`: 6 of 24 tiles [16, 8 * 32].
RESERVED = [("block", 192, 21 * 64 * 64 * 2 + 2 * 2 * 192 * 2), ("grid", 2048, 6 * 16 * 8 * 32 * 2)]


def compile_scan(kernel, hidden_size):
    """Return a compiled scan of one batch row in fp16.

    Triton's cache in memory is cleared first. So the scan is compiled, or read from the cache on disk.
    """
    set_compile_target(KNOWN_DEVICES["H200"])
    scan = kernel_launches(kernel, KNOWN_DEVICES["H200"], "fp16", hidden_size, 1)[-1]
    scan.kernel.device_caches.clear()
    return scan.compile()


@pytest.mark.parametrize("kernel, hidden_size, reserved", RESERVED)
def test_a_launch_asks_for_the_memory_of_the_compiler_and_the_reserved_memory(
    kernel, hidden_size, reserved, monkeypatch
):
    # The second scan comes from Triton's cache on disk.
    scans = [compile_scan(kernel, hidden_size) for _ in range(2)]
    monkeypatch.setattr(reserve, "_reserve_memory", lambda compiled: compiled)
    without_reserved = compile_scan(kernel, hidden_size).metadata.shared
    for scan in scans:
        assert scan.metadata.shared == -(-without_reserved // 16) * 16 + reserved
        assert scan.metadata.shared in scan.packed_metadata, "the launcher gets a different size"


@pytest.mark.parametrize(
    "layout, other_layout", [("threadsPerWarp = [1, 8, 4]", "threadsPerWarp = [1, 4, 8]"), ("x8x4xi32", "x4x8xi32")]
)
def test_operands_in_other_lanes_raise(layout, other_layout):
    text = compile_scan("block", 64).asm["ttgir"]
    reserve._check_layout(text)
    with pytest.raises(RuntimeError, match="lays out the operands"):
        reserve._check_layout(text.replace(layout, other_layout))
