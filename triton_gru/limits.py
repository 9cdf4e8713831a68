"""The sizes that kernels can serve: what a launch takes, and what the 32-bit numbers hold that they count with.

Places in memory are no limit: kernels find them in 64 bits, whatever the strides.
"""

from .config import Config, projection_config
from .problem import Problem

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": programs of a launch in x, y and z.
LAUNCH_GRID = (2**31 - 1, 65_535, 65_535)
# Triton 3.6's launcher multiplies the three in an int. Where that overflows to less than one, it starts nothing.
PROGRAMS = 2**31 - 1
# Numbers of steps, rows and features. The last tile and what is loaded ahead go beyond the last one, by less than 128.
LARGEST = 2**31 - 1 - 128


def why_too_large(config: Config, problem: Problem) -> str:
    """Return why a problem is too large for a kernel in this configuration; empty if it is not."""
    for name in ("steps", "batch_size", "input_size", "hidden_size"):
        if (size := getattr(problem, name)) > LARGEST:
            return f"{name} {size} is too large: kernels count in 32 bits, to {LARGEST}"
    rows = -(-problem.batch_size // config.rows) * config.rows
    grids = [config.launch_grid(problem.batch_size, problem.directions)]
    for aligned in (True, False):
        tile = projection_config(problem.hidden_size, problem.dtype, problem.precision, aligned)
        grids.append(tile.launch_grid(rows, config.padded_hidden, problem.directions))  # several steps are fewer
    return next(filter(None, map(_why_no_launch, grids)), "")


def _why_no_launch(grid: tuple[int, ...]) -> str:
    x, y, z = (*grid, 1, 1)[:3]
    if all(size <= most for size, most in zip((x, y, z), LAUNCH_GRID)) and x * y * z <= PROGRAMS:
        return ""
    return (
        f"the sizes are too large: a launch would have {x} x {y} x {z} programs, and takes "
        f"{' x '.join(map(str, LAUNCH_GRID))} and {PROGRAMS} in all"
    )


def why_too_many_rows(rows: int) -> str:
    """Return why packed data of so many rows is too large; empty if it is not."""
    if rows <= LARGEST:
        return ""
    return f"packed data of {rows} rows is too large: kernels count them in 32 bits, to {LARGEST}"
