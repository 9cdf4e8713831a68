"""Launches that compute the gate inputs of a scan: one of ours, or products of cuBLAS and a launch to arrange them."""

from collections.abc import Iterator

from torch import Tensor

from ..kernels.projection import Arranged, Cut, arrange_products, input_projection
from ..plan.config import ARRANGE_TILE, CUBLAS, BlockConfig, Config, Projection, projection_config
from .kernel_launch import Launch, Product
from .scan import Scan, common_constants


def launches(
    x: Tensor, scan: Scan, config: Config, projection: Projection | None, products: Tensor | None
) -> Iterator[Launch | Product]:
    """Yield the launches that compute the gate inputs ``scan.gi`` of a chunk.

    Args:
        x: the layer's input: [T, B, I] with any strides, or packed [N, I].
        scan: the scan, at the chunk.
        config: the scan's configuration.
        projection: `CUBLAS`, a tile of our kernel, or None for the usual tile.
        products: one-dimensional memory for cuBLAS's products, else None.
    """
    if projection == CUBLAS:
        yield from _launch_cublas(x, scan, config, products)
    else:
        yield _launch_kernel(x, scan, config, projection)


def _launch_kernel(x: Tensor, scan: Scan, config: Config, tile: Projection | None) -> Launch:
    problem, inputs = scan.problem, x.size(-1)
    # The stride of a dimension of size 1 may have any value, which must not decide what is compiled. Make it zero.
    x_t = x.stride(0) if x.size(0) > 1 else 0
    x_b = x.stride(1) if x.dim() == 3 and x.size(1) > 1 else 0
    vector = 16 // x.element_size()
    unit = vector if inputs % vector == 0 and x_t % vector == 0 and x_b % vector == 0 else 1
    aligned = unit > 1 and x.stride(-1) == 1
    if tile is None or not aligned:  # tiles were tuned for aligned rows
        tile = projection_config(problem.hidden_size, x.dtype, problem.precision, aligned=aligned)
    cols = scan.steps * scan.gi.size(2) * config.rows
    cut = Cut.of(
        **_common_constants(scan, config),
        LAYOUT=scan.layout,
        I=inputs,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.cols,
        BLOCK_K=tile.depth,
        X_UNIT=unit,
    )
    return Launch(
        input_projection,
        tile.launch_grid(cols, config.padded_hidden, len(scan.weights)),
        (
            x, *scan.select_weights(0, 2, 3), scan.gi, scan.lengths, scan.offsets,
            scan.steps, scan.start, scan.total, scan.batch, x_t // unit, x_b // unit, x.stride(-1) if inputs > 1 else 1,
        ),
        {"cut": cut, "num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )  # fmt: skip


def _launch_cublas(x: Tensor, scan: Scan, config: Config, products: Tensor) -> Iterator[Launch | Product]:
    rows, gates = scan.steps * scan.batch, 3 * scan.problem.hidden_size
    products = products[: len(scan.weights) * rows * gates].view(-1, rows, gates)
    # If the memory of x is batch-first, multiply rows in that order. So x is not copied if the chunk is all of x.
    batch_first = x.stride(0) < x.stride(1) and scan.batch > 1
    for direction, (w_ih, *_) in enumerate(scan.weights):
        backward = direction == 1 or scan.problem.reverse
        first = scan.total - scan.start - scan.steps if backward else scan.start
        chunk = x[first : first + scan.steps]
        yield Product(chunk.transpose(0, 1) if batch_first else chunk, w_ih, products[direction])
    cut = Arranged.of(**_common_constants(scan, config), BLOCK_M=ARRANGE_TILE.rows, BLOCK_N=ARRANGE_TILE.cols)
    product_t, product_b = (1, scan.steps) if batch_first else (scan.batch, 1)
    yield Launch(
        arrange_products,
        ARRANGE_TILE.launch_grid(scan.steps * scan.gi.size(2) * config.rows, config.padded_hidden, len(scan.weights)),
        (products, *scan.select_weights(2, 3), scan.gi, scan.steps, scan.batch, product_t, product_b),
        {"cut": cut, "num_warps": ARRANGE_TILE.num_warps, "num_stages": ARRANGE_TILE.num_stages},
    )


def _common_constants(scan: Scan, config: Config) -> dict:
    """Return the values of `kernels.projection.GateInputs`."""
    return common_constants(scan.problem) | {
        "RESET_AFTER": scan.problem.reset_after,
        "REVERSE": scan.problem.reverse,
        "HAS_BIAS": scan.has_bias,
        "PADDED_H": config.padded_hidden,
        "BATCH": config.rows,
        "UNIT_STRIDE": config.rows if isinstance(config, BlockConfig) else 1,
    }
