"""What the compiler makes of every configuration the heuristic can choose, on devices that need not be there."""

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

# One hidden size of each tile the heuristic cuts, exact and padded, and the largest that fits anywhere. The two 16-bit
# types differ in conversions alone: one of bf16 will do.
SIZES = {
    "fp16": (1, 25, 32, 64, 100, 128, 150, 192), "tf32": (25, 32, 64, 128), "fp32": (25, 64, 100, 128), "bf16": (192,),
}  # fmt: skip
# Instructions of a step of one row on sm_90, as perf/NOTES.md has them.
INSTRUCTIONS = {
    ("fp16", 32): 53, ("fp16", 64): 60, ("fp16", 128): 75, ("fp16", 150): 311, ("fp16", 192): 314,
    ("tf32", 32): 64, ("tf32", 64): 82, ("tf32", 128): 117,
}  # fmt: skip
# With which a program has two, eight and sixteen batch rows, as far as a shape has all three.
BATCHES = (1, 1_000, 20_000)
# On other architectures than sm_90: few kernels, and where registers are short.
ELSEWHERE = {"fp16": (128, 192), "tf32": (128,), "fp32": (64,)}


def fits(device, precision, hidden_size, batch_size=1):
    return not isinstance(block_config(hidden_size, batch_size, 1, *PRECISIONS[precision], device), str)


def shapes(sizes):
    return [
        ("block", precision, hidden_size, batch_size)
        for precision in sizes for hidden_size in sizes[precision] for batch_size in BATCHES
    ]  # fmt: skip


@pytest.mark.parametrize("device, kernel, precision, hidden_size, batch_size", cases(shapes(SIZES), shapes(ELSEWHERE)))
def test_every_chosen_configuration_stays_on_chip(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    inputs = hidden_size if hidden_size > 1 else 7  # odd where the hidden size is
    launches = kernel_launches(kernel, device, precision, hidden_size, batch_size, inputs=inputs)
    for launch in launches if batch_size == 1 else launches[1:]:  # the projection's tile is the same for all
        found = KernelStats(launch.compile())
        assert found.stack <= STACK_LIMIT and found.spills == 0, found
        assert found.shared <= device.shared_memory, found

    dtype, fp32_precision = PRECISIONS[precision]
    config = block_config(hidden_size, batch_size, 1, dtype, fp32_precision, device)
    assert found.shared <= config.shared_memory(dtype.itemsize), "the heuristic's estimate was too low"
    # Of a single warp the compiler says where the weights stay. Triton 3.8 keeps them in shared memory.
    placed = config.num_warps > 1 or triton.__version__ == PINNED_TRITON
    # The loop reads from memory the gates of the steps ahead, in pairs of batch rows or where there are but two one by
    # one, and nothing else; of units beyond H the compiler may leave them out.
    threads = 32 * config.num_warps
    words = -(-config.units * config.columns // (4 if config.batch == 2 else 2) // threads)
    assert 0 < found.loop["LDG"] <= 3 * config.tiles * config.ahead * words, found
    # What a warp reads of shared memory per step: the state, and its rows of the weights that are kept there.
    if fp32_precision == "tf32" or dtype != torch.float32:
        itemsize, warps = dtype.itemsize, min(config.num_warps, config.units // 16)
        weights = (config.shared_tiles if placed else 3 * config.tiles**2) * config.units**2 * itemsize // warps
        state = config.padded_hidden * config.columns * itemsize
        assert found.shared_bytes_read <= config.ahead * (weights + state), found
        # A step takes no more instructions than its products and what they have from shared memory call for, two for
        # each, and those of every step and of every result that a thread makes of it.
        results = config.tiles * max(1, config.units * config.columns // threads) // (4 if config.batch == 2 else 1)
        products = sum(found.loop[name] for name in ("HMMA", "LDS", "LDSM")) / config.ahead
        if not found.loop["HGMMA"]:  # of which one does what many do
            assert found.executed / config.ahead <= 40 + 2 * products + 26 * results, found
        if device.arch == "sm_90" and batch_size == 1 and (precision, hidden_size) in INSTRUCTIONS:
            assert found.executed / config.ahead <= INSTRUCTION_SLACK * INSTRUCTIONS[precision, hidden_size], found
    # No room there for the weights in registers: they can be nowhere else.
    if config.register_tiles and placed:
        assert found.shared < (config.shared_tiles + config.register_tiles) * config.units**2 * dtype.itemsize


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
def test_what_does_not_fit_is_refused_with_the_reason(device):
    for precision, (dtype, fp32_precision) in PRECISIONS.items():
        refusal = block_config(512, 1, 1, dtype, fp32_precision, device)
        assert isinstance(refusal, str) and "too large" in refusal and device.name in refusal, precision


def test_sizes_served_per_device():
    """The table of hidden sizes in triton_gru/SUPPORT.md."""
    largest = {
        device.name: {p: max(h for h in range(1, 300) if fits(device, p, h)) for p in PRECISIONS}
        for device in KNOWN_DEVICES.values()
    }
    little = {"fp16": 128, "bf16": 128, "tf32": 128, "fp32": 64}
    much = {"fp16": 192, "bf16": 192, "tf32": 128, "fp32": 128}
    assert largest == {
        **dict.fromkeys(("A100", "L40S", "RTX 4090", "RTX 5090"), little),
        **dict.fromkeys(("H200", "H100", "GH200", "B200"), much),
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_input_at_an_odd_address(precision):
    """Compiled for with narrower loads, not assumed away."""
    device = KNOWN_DEVICES["H200"]
    set_compile_target(device)
    aligned, odd = (
        kernel_launches("block", device, precision, 64, 1, inputs=64, odd_address=odd)[0].compile()
        for odd in (False, True)
    )
    assert aligned.hash != odd.hash
    found = KernelStats(odd)
    assert (found.stack, found.spills) == (0, 0)
    assert found.shared <= device.shared_memory


@pytest.mark.parametrize("inputs, hidden_size", [(64, 64), (7, 25)])
def test_other_lengths_and_batches_add_no_compile(inputs, hidden_size):
    set_compile_target(KNOWN_DEVICES["H200"])
    launches = []
    for steps in (1, 2, 7, 100):
        for batch_size in (1, 3, 8, 16, 17, 64):
            launches += kernel_launches(
                "block", KNOWN_DEVICES["H200"], "fp16", hidden_size, batch_size, steps=steps, inputs=inputs
            )
    assert count_variants(launches) == {"block_scan": 1, "input_projection": 1}
