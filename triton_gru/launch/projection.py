"""What the input projection is launched with."""

from torch import Tensor

from ..kernels.projection import Cut, input_projection
from ..plan.config import BlockConfig, Config, projection_config
from .kernel_launch import Launch
from .scan import Scan, numbers_of


def launch(x: Tensor, scan: Scan, config: Config) -> Launch:
    """Return the launch that fills the gate inputs of ``scan`` from ``x``, which is as in `Call`."""
    problem, inputs = scan.problem, x.size(-1)
    # A dimension of one has no stride to speak of; zero keeps it from deciding what is compiled.
    x_t = x.stride(0) if x.size(0) > 1 else 0
    x_b = x.stride(1) if x.dim() == 3 and x.size(1) > 1 else 0
    vector = 16 // x.element_size()
    unit = vector if inputs % vector == 0 and x_t % vector == 0 and x_b % vector == 0 else 1
    aligned = unit > 1 and x.stride(-1) == 1
    tile = projection_config(problem.hidden_size, x.dtype, problem.precision, aligned=aligned)
    cols = scan.steps * scan.gi.size(2) * config.rows
    return Launch(
        input_projection,
        tile.launch_grid(cols, config.padded_hidden, len(scan.weights)),
        (
            x, *scan.of_both(0, 2, 3), scan.gi, scan.lengths, scan.offsets,
            scan.steps, scan.start, scan.total, scan.batch, x_t // unit, x_b // unit, x.stride(-1) if inputs > 1 else 1,
        ),
        {
            "cut": Cut.of(
                **numbers_of(problem),
                RESET_AFTER=problem.reset_after,
                LAYOUT=scan.layout,
                REVERSE=problem.reverse,
                HAS_BIAS=scan.has_bias,
                I=inputs,
                PADDED_H=config.padded_hidden,
                BATCH=config.rows,
                UNITS_APART=config.rows if isinstance(config, BlockConfig) else 1,
                BLOCK_M=tile.rows,
                BLOCK_N=tile.cols,
                BLOCK_K=tile.depth,
                X_UNIT=unit,
            ),
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        },
    )  # fmt: skip
