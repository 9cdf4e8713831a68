"""What ``block`` is launched with."""

from collections.abc import Iterator

from ..kernels.block import block_scan
from ..plan.config import BlockConfig
from .kernel_launch import Launch
from .scan import Scan


def launches(scan: Scan, config: BlockConfig) -> Iterator[Launch]:
    """Yield the launch for a chunk of steps. The state comes in where it goes out."""
    yield Launch(
        block_scan,
        config.launch_grid(scan.batch, len(scan.weights)),
        (
            scan.gi, *scan.of_both(1, 3), scan.initial, scan.carry[0], scan.out, scan.h_n, *scan.ends,
            scan.steps, scan.start, scan.total, scan.first_state, scan.batch, *scan.out_strides, *scan.hx_strides,
        ),
        scan.constants | {
            "UNITS": config.units,
            "TILES": config.tiles,
            "BATCH": config.batch,
            "AHEAD": config.ahead,
            "REGISTER_TILES": config.register_tiles,
            "RESET_AFTER": scan.problem.reset_after,
            "WARPS": config.num_warps,
            "num_warps": config.num_warps,
            "num_stages": 1,
        },
    )  # fmt: skip
