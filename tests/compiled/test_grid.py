"""Tests of the machine code of every ``grid`` configuration that the heuristic can choose, without a GPU."""

import dataclasses
import re

import pytest
import triton

from perf.experiments.stages_kernel import load_copy
from triton_gru.accuracy import PRECISIONS
from triton_gru.plan.config import HANDOVERS
from triton_gru.plan.heuristic import grid_config

from .harness import (
    INSTRUCTION_SLACK,
    KNOWN_DEVICES,
    STACK_LIMIT,
    KernelStats,
    cases,
    count_variants,
    kernel_launches,
    set_compile_target,
)

# Shape -> instructions of a step, as in perf/NOTES.md, or 0 if not checked. Some shapes are exact, and others have a
# tail of units, of segments or of words. Weights are only in registers, or also in shared memory. Tiles are one or two.
SHAPES = {
    ("fp16", 25, 1): 0, ("fp16", 256, 1): 120, ("fp16", 512, 1): 135, ("fp16", 512, 64): 169, ("fp16", 512, 1000): 0,
    ("fp16", 600, 1000): 0, ("fp16", 1024, 1): 187, ("fp16", 1024, 64): 430, ("fp16", 1024, 1000): 0,
    ("fp16", 1500, 40): 0, ("fp16", 2048, 1): 213, ("fp16", 2048, 40): 0, ("fp16", 2048, 64): 587,
    ("tf32", 256, 1): 140, ("tf32", 512, 1): 191, ("tf32", 512, 64): 222, ("tf32", 512, 1000): 0,
    ("tf32", 1024, 1): 209, ("tf32", 1024, 64): 594, ("tf32", 1500, 1): 0,
    ("fp32", 600, 1): 273, ("fp32", 1024, 1): 390, ("bf16", 1024, 64): 0,
}  # fmt: skip
# Fewer shapes for architectures other than sm_90: the shapes that need most registers.
ELSEWHERE = (("fp16", 1024, 1000), ("fp16", 2048, 1), ("tf32", 1024, 1000), ("fp32", 300, 1), ("fp32", 1024, 1))


def choose_config(device, precision, hidden_size, batch_size):
    """Return the heuristic's configuration, or why there is none."""
    return grid_config(hidden_size, batch_size, 1, *PRECISIONS[precision], device)


def test_largest_hidden_size_of_each_device():
    """Check the table of hidden sizes in triton_gru/SUPPORT.md. All sizes up to a multiple of 16 are served alike."""

    def largest_size(device, precision, batch=64):
        sizes = range(2512, 0, -16)
        return next((h for h in sizes if not isinstance(choose_config(device, precision, h, batch), str)), 0)

    largest = {
        device.name: {precision: largest_size(device, precision) for precision in ("fp16", "tf32", "fp32")}
        for device in KNOWN_DEVICES.values()
    }
    assert largest == {
        "A100": {"fp16": 1728, "tf32": 1408, "fp32": 768},
        "L40S": {"fp16": 2272, "tf32": 1152, "fp32": 384},
        "RTX 4090": {"fp16": 2048, "tf32": 1152, "fp32": 384},
        **{name: {"fp16": 2112, "tf32": 1664, "fp32": 1024} for name in ("H200", "H100", "GH200")},
        "B200": {"fp16": 2368, "tf32": 1664, "fp32": 1024},
        "RTX 5090": {"fp16": 2304, "tf32": 1152, "fp32": 384},
    }
    assert {largest_size(device, "fp32", batch=1) for device in KNOWN_DEVICES.values()} == {1024}


def make_scan(device, precision, hidden_size, batch_size, hx=True, **options):
    """Return the scan's launch of a call, as `kernel_launches`."""
    return kernel_launches("grid", device, precision, hidden_size, batch_size, hx=hx, **options)[-1]


@pytest.mark.parametrize(
    "device, kernel, precision, hidden_size, batch_size",
    cases([("grid", *shape) for shape in SHAPES], [("grid", *shape) for shape in ELSEWHERE]),
)
def test_every_chosen_configuration_stays_on_chip(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    config = choose_config(device, precision, hidden_size, batch_size)
    launch = kernel_launches(kernel, device, precision, hidden_size, batch_size, hx=True)[-1]
    assert launch.constants["launch_cooperative_grid"] is True
    compiled = launch.compile()
    assert compiled.metadata.launch_cooperative_grid is True
    stats = KernelStats(compiled)
    itemsize = PRECISIONS[precision][0].itemsize
    assert stats.stack <= STACK_LIMIT and stats.spills == 0, stats
    assert stats.shared <= config.shared_memory(itemsize) <= device.shared_memory, stats

    # A step reads the words of the state and the gate inputs of the next step from memory, and after a long wait three
    # more words. The step does not read the weights.
    words = config.weight_tiles(itemsize) // 3 * config.batch // (4 if precision == "fp32" else 8)
    if precision == "fp32" and config.register_tiles:
        words = config.lane_words(config.lanes_per_slice) * config.rows
    gates = 3 * -(-config.units * config.batch // (32 * config.slices))
    assert config.tiles * words < stats.loop["LDG"] <= config.tiles * (words + gates + 3), stats
    if device.arch == "sm_90" and SHAPES[precision, hidden_size, batch_size]:
        assert stats.executed <= INSTRUCTION_SLACK * SHAPES[precision, hidden_size, batch_size], stats
    if precision == "fp32":
        if config.register_tiles:
            assert stats.loop["BAR"] == 2 * config.tiles, stats
        return
    # The bound of a step's instructions has four for each word, product and load from shared memory. It has 30 for each
    # tile, and 80 for each result of a thread.
    results = max(1, config.units * config.batch // (32 * config.slices))
    from_shared = 2 * (config.weight_tiles(itemsize) - config.register_tiles) * config.units // 16
    bound = config.tiles * (4 * (words + from_shared) + 30 + 80 * results) + 4 * stats.loop["HMMA"]
    assert stats.executed <= bound, stats
    # From shared memory, a step reads the weights that stay there, and the slices' sums, which the compiler may pad by
    # a fourth. The step does not read the weights in registers from there.
    depth = 32 if itemsize == 2 else 16
    tile_bytes = config.units * depth * itemsize  # the part of one warp
    in_shared = config.weight_tiles(itemsize) - config.register_tiles
    sums = 16 * config.units * max(config.batch, 32 * config.slices // config.units)
    assert stats.shared_bytes_read <= config.tiles * (in_shared * tile_bytes + sums), stats
    # Slices exchange the sums of a tile in one trip through shared memory, or in two if the sums are many.
    trips = 1 if config.slices * config.units * config.batch <= 2048 else 2
    assert stats.loop["BAR"] == 2 * trips * config.tiles, stats


@pytest.mark.parametrize(
    "precision, tiles, handover",
    [("fp16", 1, "flag")] + [("fp16", 2, handover) for handover in HANDOVERS] + [("tf32", 1, "flag")],
)
def test_a_state_is_sent_before_the_wait_for_the_next_one(precision, handover, tiles):
    """Check the order in the PTX. A wait that the compiler moved above the send that it needs would never end."""
    set_compile_target(KNOWN_DEVICES["H200"])
    config = choose_config(KNOWN_DEVICES["H200"], precision, 256, 8)
    config = dataclasses.replace(config, tiles=tiles, handover=handover, register_tiles=0)
    compiled = make_scan(KNOWN_DEVICES["H200"], precision, 256, 8, config=config).compile()
    # AGAIN is the label of the loop of a wait. All others are sends: stores or additions of data, not of addresses.
    marks = re.findall(
        r"AGAIN:|st\.relaxed\.gpu\.global\.b(?:16|32|64)(?= \[%rd\d+(?:\+\d+)?\], %)|red\S*add|atom\S*add",
        compiled.asm["ptx"],
    )
    sends = [i for i, mark in enumerate(marks) if mark != "AGAIN:"]
    waits = [i for i, mark in enumerate(marks) if mark == "AGAIN:"]
    assert len(waits) == tiles, marks
    sends_before = sum(i < waits[0] for i in sends)
    sends_after = len(sends) - sends_before
    # First the initial states of all tiles are sent. Then the loop alternates between a wait and a send for each tile.
    assert sends_before == sends_after >= tiles, marks
    if tiles == 2:
        assert any(waits[0] < i < waits[1] for i in sends), marks


@pytest.mark.parametrize("hx", [False, True])
def test_other_lengths_and_batches_need_no_other_kernel(hx):
    """Check that one kernel serves all lengths and batches. Exception: 1 row and 2 to 4 rows have other kernels."""
    set_compile_target(KNOWN_DEVICES["H200"])

    def count_kernels(*batch_sizes):
        scans = [
            make_scan(KNOWN_DEVICES["H200"], "fp16", 200, batch_size, hx=hx, steps=steps)
            for batch_size in batch_sizes for steps in (1, 2, 17)
        ]  # fmt: skip
        return count_variants(scans)["grid_scan"]

    assert count_kernels(5, 7, 8, 17) == 1
    assert count_kernels(1, 2, 3, 4, 5) == 3


@pytest.mark.parametrize("function", ["isa._store_ptx", "isa._wait_ptx", "isa.missing_ptx", "fragments._mma_ptx"])
def test_the_cache_key_of_a_kernel_depends_on_its_assembly(function):
    """Check this for each function that returns PTX.

    Otherwise Triton's cache would serve kernels with an earlier version's assembly.
    """
    before = load_copy("kernels in a copy", "grid").grid_scan.cache_key
    assert load_copy("kernels in a copy", "grid").grid_scan.cache_key == before
    owner, name = function.split(".")
    changed = load_copy("kernels in a copy", "grid")
    setattr(getattr(changed, owner), name, triton.constexpr_function(_no_assembly))
    assert changed.grid_scan.cache_key != before


def _no_assembly(*arguments):
    """Return an empty text, in place of PTX."""
    return ""
