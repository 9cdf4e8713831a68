"""Launches of ``block``."""

from collections.abc import Iterator

from ..kernels.block import Cut, block_scan
from ..plan.config import BlockConfig
from ..plan.problem import Problem
from .kernel_launch import Launch
from .scan import Scan, common_constants


def launches(scan: Scan, config: BlockConfig) -> Iterator[Launch]:
    """Yield the one launch for a chunk of steps. It reads the state from ``carry[0]`` and overwrites that.

    Exception: the first chunk reads ``hx``, and the last chunk writes ``h_n``.
    """
    yield Launch(
        block_scan,
        config.launch_grid(scan.batch, len(scan.weights)),
        (
            scan.gi, *scan.select_weights("weight_hh", "bias_hh"), scan.initial_state,
            scan.carry[0], scan.out, scan.h_n, *scan.sequence_tensors,
            scan.steps, scan.start, scan.total, scan.first_state, scan.batch, *scan.out_strides, *scan.hx_strides,
        ),
        {"cut": cut(config, scan.problem), "call": scan.call_constants, "num_warps": config.num_warps, "num_stages": 1},
    )  # fmt: skip


def cut(config: BlockConfig, problem: Problem) -> Cut:
    """Return the constants of a configuration and problem that the kernel is compiled for."""
    return Cut.of(
        **common_constants(problem),
        RESET_AFTER=problem.reset_after,
        UNITS=config.units,
        UNIT_TILES=config.tiles,
        BATCH=config.batch,
        PREFETCH_STEPS=config.ahead,
        REGISTER_TILES=config.register_tiles,
        WARPS=config.num_warps,
    )
