"""Tests of the machine code of every ``block`` configuration that the heuristic can choose, without a GPU."""

import pytest
import torch
import triton

from triton_gru.accuracy import PRECISIONS
from triton_gru.plan.heuristic import block_config

from .harness import (
    INSTRUCTION_SLACK,
    KNOWN_DEVICES,
    PINNED_TRITON,
    STACK_LIMIT,
    KernelStats,
    cases,
    count_variants,
    kernel_launches,
    set_compile_target,
)

# Hidden sizes for each tile that the heuristic cuts, exact and padded, and the largest that fits on any device. bf16
# has a single size, because the two 16-bit types differ only in conversions.
SIZES = {
    "fp16": (1, 25, 32, 64, 100, 128, 150, 192), "tf32": (25, 32, 64, 128), "fp32": (25, 64, 100, 128), "bf16": (192,),
}  # fmt: skip
# Limits of the instructions of a step of one batch row on sm_90: at most 2 more than in perf/NOTES.md.
INSTRUCTIONS = {
    ("fp16", 32): 53, ("fp16", 64): 60, ("fp16", 128): 75, ("fp16", 150): 311, ("fp16", 192): 314,
    ("tf32", 32): 64, ("tf32", 64): 82, ("tf32", 128): 117,
}  # fmt: skip
# Batch sizes for which a program has two, eight and sixteen batch rows. Exception: shapes that lack one of these.
BATCHES = (1, 1_000, 20_000)
# Fewer shapes for architectures other than sm_90: the shapes that need most registers.
ELSEWHERE = {"fp16": (128, 192), "tf32": (128,), "fp32": (64,)}


def fits(device, precision, hidden_size):
    """Return whether the heuristic has a configuration for a single batch row."""
    return not isinstance(block_config(hidden_size, 1, 1, *PRECISIONS[precision], device), str)


def make_shapes(sizes):
    """Return the arguments of `cases` for hidden sizes by precision, each with all `BATCHES`."""
    return [
        ("block", precision, hidden_size, batch_size)
        for precision in sizes for hidden_size in sizes[precision] for batch_size in BATCHES
    ]  # fmt: skip


@pytest.mark.parametrize(
    "device, kernel, precision, hidden_size, batch_size", cases(make_shapes(SIZES), make_shapes(ELSEWHERE))
)
def test_every_chosen_configuration_stays_on_chip(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    inputs = hidden_size if hidden_size > 1 else 7  # also an odd number of features
    launches = kernel_launches(kernel, device, precision, hidden_size, batch_size, inputs=inputs)
    for launch in launches if batch_size == 1 else launches[1:]:  # the projection's tile is the same for all
        stats = KernelStats(launch.compile())
        assert stats.stack <= STACK_LIMIT and stats.spills == 0, stats
        assert stats.shared <= device.shared_memory, stats

    dtype, fp32_precision = PRECISIONS[precision]
    config = block_config(hidden_size, batch_size, 1, dtype, fp32_precision, device)
    assert stats.shared <= config.shared_memory(dtype.itemsize), "the heuristic's estimate was too low"
    # For a single warp, the compiler decides where the weights stay. Triton 3.8 keeps them in shared memory.
    is_placed = config.num_warps > 1 or triton.__version__ == PINNED_TRITON
    # The loop reads only the gate inputs of the steps ahead from memory. A load has a pair of batch rows, or a single
    # row if a program has only two rows. The compiler may omit loads of units beyond H.
    threads = 32 * config.num_warps
    words = -(-config.units * config.columns // (4 if config.batch == 2 else 2) // threads)
    assert 0 < stats.loop["LDG"] <= 3 * config.tiles * config.ahead * words, stats
    # In a step, a warp reads the state from shared memory, and the warp's rows of the weights that stay there.
    if fp32_precision == "tf32" or dtype != torch.float32:
        itemsize, warps = dtype.itemsize, min(config.num_warps, config.units // 16)
        weights = (config.shared_tiles if is_placed else 3 * config.tiles**2) * config.units**2 * itemsize // warps
        state = config.padded_hidden * config.columns * itemsize
        assert stats.shared_bytes_read <= config.ahead * (weights + state), stats
        # The instructions of a step are bounded: 40, two for each product and each load from shared memory, and 26 for
        # each result of a thread.
        results = config.tiles * max(1, config.units * config.columns // threads) // (4 if config.batch == 2 else 1)
        products = sum(stats.loop[name] for name in ("HMMA", "LDS", "LDSM")) / config.ahead
        if not stats.loop["HGMMA"]:  # one HGMMA is many products
            assert stats.executed / config.ahead <= 40 + 2 * products + 26 * results, stats
        if device.arch == "sm_90" and batch_size == 1 and (precision, hidden_size) in INSTRUCTIONS:
            assert stats.executed / config.ahead <= INSTRUCTION_SLACK * INSTRUCTIONS[precision, hidden_size], stats
    # Shared memory is too small for the tiles in registers as well, so these are really in registers.
    if config.register_tiles and is_placed:
        assert stats.shared < (config.shared_tiles + config.register_tiles) * config.units**2 * dtype.itemsize


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
def test_a_hidden_size_that_does_not_fit_gives_a_reason(device):
    for precision, (dtype, fp32_precision) in PRECISIONS.items():
        reason = block_config(512, 1, 1, dtype, fp32_precision, device)
        assert isinstance(reason, str) and "too large" in reason and device.name in reason, precision


def test_largest_hidden_size_of_each_device():
    """Check the table of hidden sizes in triton_gru/SUPPORT.md."""
    largest = {
        device.name: {
            precision: max(hidden_size for hidden_size in range(1, 300) if fits(device, precision, hidden_size))
            for precision in PRECISIONS
        }
        for device in KNOWN_DEVICES.values()
    }
    small = {"fp16": 128, "bf16": 128, "tf32": 128, "fp32": 64}
    large = {"fp16": 192, "bf16": 192, "tf32": 128, "fp32": 128}
    assert largest == {
        **dict.fromkeys(("A100", "L40S", "RTX 4090", "RTX 5090"), small),
        **dict.fromkeys(("H200", "H100", "GH200", "B200"), large),
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_input_at_an_odd_address_gets_its_own_kernel(precision):
    """Check that Triton compiles another kernel, which spills nothing, for an input that is not aligned."""
    device = KNOWN_DEVICES["H200"]
    set_compile_target(device)
    aligned, odd = (
        kernel_launches("block", device, precision, 64, 1, inputs=64, odd_address=odd)[0].compile()
        for odd in (False, True)
    )
    assert aligned.hash != odd.hash
    stats = KernelStats(odd)
    assert (stats.stack, stats.spills) == (0, 0)
    assert stats.shared <= device.shared_memory


@pytest.mark.parametrize("inputs, hidden_size", [(64, 64), (7, 25)])
def test_other_lengths_and_batches_need_no_other_kernel(inputs, hidden_size):
    set_compile_target(KNOWN_DEVICES["H200"])
    launches = []
    for steps in (1, 2, 7, 100):
        for batch_size in (1, 3, 8, 16, 17, 64):
            launches += kernel_launches(
                "block", KNOWN_DEVICES["H200"], "fp16", hidden_size, batch_size, steps=steps, inputs=inputs
            )
    assert count_variants(launches) == {"block_scan": 1, "input_projection": 1}
