"""Launches that compute the gate inputs of a scan: one of ours, or products of cuBLAS and a launch to arrange them."""

from collections.abc import Iterator

from torch import Tensor

from ..kernels.projection import Arranged, Cut, arrange_products, input_projection
from ..plan.config import ARRANGE_TILE, CUBLAS, BlockConfig, Config, Projection, projection_config
from .kernel_launch import Launch, Product
from .scan import Scan, common_constants


def projection_launches(
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
        yield from _cublas_launches(x, scan, config, products)
    else:
        yield _make_kernel_launch(x, scan, config, projection)


def _make_kernel_launch(x: Tensor, scan: Scan, config: Config, tile: Projection | None) -> Launch:
    """Return the launch of our own kernel, in the usual tile if ``tile`` is None or the rows are not aligned."""
    problem, inputs = scan.problem, x.size(-1)
    # The stride of a dimension of size 1 may have any value, which must not decide what is compiled. Make it zero.
    time_stride = x.stride(0) if x.size(0) > 1 else 0
    batch_stride = x.stride(1) if x.dim() == 3 and x.size(1) > 1 else 0
    # The kernel takes strides in units of 16 bytes if all rows begin at multiples of 16 bytes from the first. So the
    # compiler knows that it may load 16 bytes at once, if the first row's address is a multiple of 16.
    vector = 16 // x.element_size()
    can_use_vectors = inputs % vector == 0 and time_stride % vector == 0 and batch_stride % vector == 0
    stride_unit = vector if can_use_vectors else 1
    aligned = can_use_vectors and x.stride(-1) == 1
    if tile is None or not aligned:  # tiles were tuned for aligned rows
        tile = projection_config(problem.hidden_size, x.dtype, problem.precision, aligned=aligned)
    cut = Cut.of(
        **_common_constants(scan, config),
        LAYOUT=scan.layout,
        I=inputs,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.cols,
        BLOCK_K=tile.depth,
        X_UNIT=stride_unit,
    )
    return Launch(
        input_projection,
        tile.launch_grid(_count_pairs(scan, config), config.padded_hidden, len(scan.weights)),
        (
            x, *scan.select_weights("weight_ih", "bias_ih", "bias_hh"), scan.gi, scan.lengths, scan.offsets,
            scan.steps, scan.start, scan.total, scan.batch,
            time_stride // stride_unit, batch_stride // stride_unit, x.stride(-1) if inputs > 1 else 1,
        ),
        {"cut": cut, "num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )  # fmt: skip


def _cublas_launches(x: Tensor, scan: Scan, config: Config, products: Tensor) -> Iterator[Launch | Product]:
    """Yield a product of cuBLAS for each direction, then the launch that arranges the products in ``scan.gi``."""
    rows, gates = scan.steps * scan.batch, 3 * scan.problem.hidden_size
    products = products[: len(scan.weights) * rows * gates].view(-1, rows, gates)
    # If the memory of x is batch-first, multiply its rows in that order. Then x is not copied if the chunk is all of x.
    is_batch_first = x.stride(0) < x.stride(1) and scan.batch > 1
    for direction, (w_ih, *_) in enumerate(scan.weights):
        is_backward = direction == 1 or scan.problem.reverse
        first_step = scan.total - scan.start - scan.steps if is_backward else scan.start
        chunk = x[first_step : first_step + scan.steps]
        yield Product(chunk.transpose(0, 1) if is_batch_first else chunk, w_ih, products[direction])
    cut = Arranged.of(**_common_constants(scan, config), BLOCK_M=ARRANGE_TILE.rows, BLOCK_N=ARRANGE_TILE.cols)
    time_stride, batch_stride = (1, scan.steps) if is_batch_first else (scan.batch, 1)  # in rows of the products
    yield Launch(
        arrange_products,
        ARRANGE_TILE.launch_grid(_count_pairs(scan, config), config.padded_hidden, len(scan.weights)),
        (
            products,
            *scan.select_weights("bias_ih", "bias_hh"),
            scan.gi,
            scan.steps,
            scan.batch,
            time_stride,
            batch_stride,
        ),
        {"cut": cut, "num_warps": ARRANGE_TILE.num_warps, "num_stages": ARRANGE_TILE.num_stages},
    )


def _count_pairs(scan: Scan, config: Config) -> int:
    """Return the number of (step, batch row) pairs in the gate inputs of a chunk, with padded rows."""
    batch_tiles = scan.gi.size(2)
    return scan.steps * batch_tiles * config.rows


def _common_constants(scan: Scan, config: Config) -> dict:
    """Return the values of `kernels.projection.GateInputs`, by field."""
    return common_constants(scan.problem) | {
        "RESET_AFTER": scan.problem.reset_after,
        "REVERSE": scan.problem.reverse,
        "HAS_BIAS": scan.has_bias,
        "PADDED_H": config.padded_hidden,
        "BATCH": config.rows,
        "UNIT_STRIDE": config.rows if isinstance(config, BlockConfig) else 1,
    }
