"""What the compiler makes of every configuration of ``grid`` that the heuristic can choose."""

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

# Exact and with every kind of tail: of units, of chunks, of words; in registers alone and not; one tile and two. With
# the instructions of a step, as perf/NOTES.md has them, or 0.
SHAPES = {
    ("fp16", 25, 1): 0, ("fp16", 256, 1): 120, ("fp16", 512, 1): 135, ("fp16", 512, 64): 169, ("fp16", 512, 1000): 0,
    ("fp16", 600, 1000): 0, ("fp16", 1024, 1): 187, ("fp16", 1024, 64): 430, ("fp16", 1024, 1000): 0,
    ("fp16", 1500, 40): 0, ("fp16", 2048, 1): 213, ("fp16", 2048, 40): 0, ("fp16", 2048, 64): 587,
    ("tf32", 256, 1): 140, ("tf32", 512, 1): 191, ("tf32", 512, 64): 222, ("tf32", 512, 1000): 0,
    ("tf32", 1024, 1): 209, ("tf32", 1024, 64): 594, ("tf32", 1500, 1): 0,
    ("fp32", 600, 1): 273, ("fp32", 1024, 1): 390, ("bf16", 1024, 64): 0,
}  # fmt: skip
# On other architectures than sm_90, of which not so much need be proven: few kernels, and where registers are short.
ELSEWHERE = (("fp16", 1024, 1000), ("fp16", 2048, 1), ("tf32", 1024, 1000), ("fp32", 300, 1))


def chosen(device, precision, hidden_size, batch_size):
    return grid_config(hidden_size, batch_size, 1, *PRECISIONS[precision], device)


def test_sizes_served_per_device():
    """The table of hidden sizes in triton_gru/SUPPORT.md. Any 16 sizes take as many programs."""
    largest = {
        device.name: {
            precision: next((h for h in range(2512, 0, -16) if not isinstance(chosen(device, precision, h, 1), str)), 0)
            for precision in ("fp16", "tf32", "fp32")
        }
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


def scan_of(device, precision, hidden_size, batch_size, hx=True, **options):
    return kernel_launches("grid", device, precision, hidden_size, batch_size, hx=hx, **options)[-1]


@pytest.mark.parametrize(
    "device, kernel, precision, hidden_size, batch_size",
    cases([("grid", *shape) for shape in SHAPES], [("grid", *shape) for shape in ELSEWHERE]),
)
def test_every_chosen_configuration_stays_on_chip(device, kernel, precision, hidden_size, batch_size):
    set_compile_target(device)
    config = chosen(device, precision, hidden_size, batch_size)
    launch = kernel_launches(kernel, device, precision, hidden_size, batch_size, hx=True)[-1]
    assert launch.constants["launch_cooperative_grid"] is True
    compiled = launch.compile()
    assert compiled.metadata.launch_cooperative_grid is True
    found = KernelStats(compiled)
    itemsize = PRECISIONS[precision][0].itemsize
    assert found.stack <= STACK_LIMIT and found.spills == 0, found
    assert found.shared <= config.shared_memory(itemsize) <= device.shared_memory, found

    # A step reads from memory the words of the state, the gates of the step to come, and, when it has waited for
    # long, three words more: not the weights.
    words = config.weight_tiles(itemsize) // 3 * config.batch // (4 if precision == "fp32" else 8)
    if precision == "fp32" and config.register_tiles:
        words = config.lane_words(config.lanes_per_slice) * config.rows
    gates = 3 * -(-config.units * config.batch // (32 * config.slices))
    assert config.tiles * words < found.loop["LDG"] <= config.tiles * (words + gates + 3), found
    if device.arch == "sm_90" and SHAPES[precision, hidden_size, batch_size]:
        assert found.executed <= INSTRUCTION_SLACK * SHAPES[precision, hidden_size, batch_size], found
    if precision == "fp32":
        if config.register_tiles:
            assert found.loop["BAR"] == 2 * config.tiles, found
        return
    # A step takes no more instructions than its words, its products and what they have from shared memory call for,
    # four for each, and those of every tile and of every result that a thread makes of it.
    results = max(1, config.units * config.batch // (32 * config.slices))
    from_shared = 2 * (config.weight_tiles(itemsize) - config.register_tiles) * config.units // 16
    called_for = config.tiles * (4 * (words + from_shared) + 30 + 80 * results) + 4 * found.loop["HMMA"]
    assert found.executed <= called_for, found
    # From shared memory it reads the weights that stay there and the slices' sums (the compiler may pad them by a
    # fourth): not the weights in registers.
    depth = 32 if itemsize == 2 else 16
    tile = config.units * depth * itemsize  # a warp's part
    in_shared = config.weight_tiles(itemsize) - config.register_tiles
    sums = 16 * config.units * max(config.batch, 32 * config.slices // config.units)
    assert found.shared_bytes_read <= config.tiles * (in_shared * tile + sums), found
    # The sums of a tile meet in one trip, or in two where they are many.
    trips = 1 if config.slices * config.units * config.batch <= 2048 else 2
    assert found.loop["BAR"] == 2 * trips * config.tiles, found


@pytest.mark.parametrize(
    "precision, tiles, handover",
    [("fp16", 1, "flag")] + [("fp16", 2, handover) for handover in HANDOVERS] + [("tf32", 1, "flag")],
)
def test_a_state_is_sent_before_the_next_is_waited_for(precision, handover, tiles):
    """In the order of the PTX. A wait that was moved above the send it needs would be one for ever."""
    set_compile_target(KNOWN_DEVICES["H200"])
    config = dataclasses.replace(chosen(KNOWN_DEVICES["H200"], precision, 256, 8), tiles=tiles, handover=handover)
    config = dataclasses.replace(config, register_tiles=0)
    compiled = scan_of(KNOWN_DEVICES["H200"], precision, 256, 8, config=config).compile()
    marks = re.findall(
        r"AGAIN:|st\.relaxed\.gpu\.global\.b(?:16|32|64)(?= \[%rd\d+(?:\+\d+)?\], %)|red\S*add|atom\S*add",
        compiled.asm["ptx"],
    )
    sends = [i for i, mark in enumerate(marks) if mark != "AGAIN:"]
    waits = [i for i, mark in enumerate(marks) if mark == "AGAIN:"]
    assert len(waits) == tiles, marks
    first_wait = waits[0]
    # The initial states of all tiles, then in the loop each tile's wait and send by turns.
    assert sum(i < first_wait for i in sends) == sum(i > first_wait for i in sends) >= tiles, marks
    if tiles == 2:
        assert any(waits[0] < i < waits[1] for i in sends), marks


@pytest.mark.parametrize("hx", [False, True])
def test_other_lengths_and_batches_add_no_compile(hx):
    """But for batches below a tile, of which each power of two is compiled for."""
    set_compile_target(KNOWN_DEVICES["H200"])

    def counted(*batch_sizes):
        scans = [
            scan_of(KNOWN_DEVICES["H200"], "fp16", 200, batch_size, hx=hx, steps=steps)
            for batch_size in batch_sizes for steps in (1, 2, 17)
        ]  # fmt: skip
        return count_variants(scans)["grid_scan"]

    assert counted(5, 7, 8, 17) == 1
    assert counted(1, 2, 3, 4, 5) == 3


@pytest.mark.parametrize("text", ["isa._store_ptx", "isa._wait_ptx", "isa.missing_ptx", "fragments._mma_ptx"])
def test_compiled_kernels_are_cached_by_the_assembly_in_them(text):
    """Else Triton's cache would go on serving kernels compiled with an earlier version's assembly."""
    before = load_copy("kernels in a copy", "grid").grid_scan.cache_key
    assert load_copy("kernels in a copy", "grid").grid_scan.cache_key == before
    owner, name = text.split(".")
    changed = load_copy("kernels in a copy", "grid")
    setattr(getattr(changed, owner), name, triton.constexpr_function(_nothing))
    assert changed.grid_scan.cache_key != before


def _nothing(*arguments):
    return ""
