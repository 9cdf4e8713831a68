"""An estimate of the time of a call, for the heuristic where nothing was measured, and for the order of tuning.

It counts instructions, bytes, FLOPs and hand-overs; the rates are the device's own. The constants come from compiled
code, and are fitted to what an H200 took for a thousand configurations (perf/NOTES.md): ``python -m perf
report`` prints how far the estimates are from what was measured.
"""

import functools
import math
import operator
from typing import NamedTuple

from ..units import format_rough_time, format_time
from .config import (
    CUBLAS,
    BlockConfig,
    Config,
    GridConfig,
    Projection,
    ProjectionConfig,
    StepConfig,
    projection_config,
)
from .device import Device
from .problem import Problem, Shape
from .validity import is_fused_step


class Cost(NamedTuple):
    """Microseconds by their cause; they add up.

    Attributes:
        launch: starting kernels, and what clears memory for them.
        projection: the inputs' products, by FLOPs or bytes, whichever takes longer.
        instructions: those of the steps, of all warps that share a multiprocessor, and again for each part of the
            batch or direction that has to wait for another (residency).
        hop: handing the state over from multiprocessor to multiprocessor.
        bytes: of W_hh, the state and the gates, from the L2 or from memory, for which a step has to wait.
    """

    launch: float = 0.0
    projection: float = 0.0
    instructions: float = 0.0
    hop: float = 0.0
    bytes: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(operator.add, self, other))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(times * each for each in self))

    def __str__(self) -> str:
        terms = sorted(self._asdict().items(), key=lambda term: -term[1])
        words = [f"{name} {format_rough_time(us)}" for name, us in terms if us >= self.total / 100]
        return f"{format_time(self.total)}: {', '.join(words)}"


# Cycles: of a step that computes nothing (barriers, a load of the state, three activations one after the other); of an
# instruction of a warp, where four warps have a scheduler each, waits for shared memory included; of a store until
# another multiprocessor sees it, and for each program that looks for it. Bytes a cycle that the L2 gives each
# multiprocessor where all ask.
_BLOCK_CHAIN, _GRID_CHAIN, _STEP_CHAIN = 110, 260, 900
_INSTRUCTION = 3.6
_HOP, _CROWD = 410, 4.2
_L2_BYTES = 19
# Bytes of a row that a product of 16 rows and 8 columns sums over.
_SUMMED = 32
# More cycles of a hop, for each program and each further one whose words lie in the same line of memory: all look at
# the line while some of them write to it.
_SHARED_LINE, _LINE = 1.8, 128
# Of ``step`` with tiles of 16 rows: cycles until what it asks for is there, from the L2 and from memory, as an H200
# took in 36 configurations. With larger tiles, so much of the bandwidths of memory and the L2.
_STEP_LATENCY, _STEP_MEMORY_LATENCY = 400, 1090
_STEP_REACHED = 0.55
# Microseconds: from one kernel to the next, where the host is ahead or a graph replays them; of a launch a step from
# Python, of which the host is not ahead; of a step of cuDNN's, launch by launch, so much of which at least is not work
# (and more in fp32).
_LAUNCH = 2.5
_PYTHON_LAUNCH = 8.0
_TORCHS_STEP, _TORCHS_STEP_IN_GRAPH, _TORCHS_GAP, _TORCHS_GAP_IN_FP32 = 11.0, 4.5, 4.0, 5.0
# Cycles: of a step of cuDNN's where it is persistent, and for each hidden unit; so many times that in 16 bits from a
# batch on.
_TORCHS_PERSISTENT_STEP, _TORCHS_PERSISTENT_UNIT = 485, 7.2
_TORCHS_PERSISTENT_BATCH, _TORCHS_PERSISTENT_BATCHED = 16, 2.2
_TORCHS_PERSISTENT_UP_TO = 128  # hidden units, and of dense input alone
_TORCHS_TF32 = 5  # times as long as `_flops` says takes a step's product as TF32, which is small
# What a matrix unit does at its best, FLOPs a cycle and multiprocessor, in 16 bits; half of it as TF32.
_MATRIX_FLOPS = {80: 2048, 90: 4096, 100: 8192}
_MATRIX_FLOPS_ELSEWHERE = 1024
_ORDINARY_FLOPS = 256
_REACHED = 0.5  # of the rates above, by a product of middling size
_IEEE_PROJECTION = 3  # times as long takes our own projection on the ordinary units


def estimate_call_cost(
    problem: Problem,
    config: Config | None,
    device: Device,
    in_graph: bool = False,
    projection: Projection | None = None,
) -> Cost:
    """Return the cost of a call by the kernel of ``config``, or by torch.nn.GRU if that is None.

    In a CUDA graph no step waits for the host.
    """
    if config is None:
        return _torchs_cost(problem, device, in_graph)
    layers, steps = problem.num_layers, problem.steps
    step = estimate_time_step_cost(config, problem.shape_on(device), problem.reset_after)
    work = step * (steps * layers)
    if projection == CUBLAS:
        work += _projection(problem, device) + _arranging(problem, config, device)
    elif is_fused_step(config, problem):
        work += _projection(problem, device) * (_IEEE_PROJECTION if problem.is_ieee else 1)
    else:
        work += _own_projection(problem, config, device, projection)
    if not isinstance(config, StepConfig):
        # A projection and a scan; before that of ``grid`` its mailbox is cleared. W_hh comes on chip once.
        launch = _LAUNCH * layers * (2 if isinstance(config, BlockConfig) else 3)
        return work + Cost(launch=launch, bytes=layers * _weights_on_chip(problem, config, device))
    launches = layers * (1 if problem.reset_after else 2)
    if problem.is_single_step:
        return work + Cost(launch=_LAUNCH * launches)
    # Each waits for the one before it. While the host makes the next launch the GPU works on this one: the rest counts.
    between = _LAUNCH * steps * launches
    if not in_graph:
        between = max(between, _PYTHON_LAUNCH * steps * launches - work.total)
    return work + Cost(launch=_LAUNCH * layers + between)


@functools.lru_cache(maxsize=4096)  # a call with another number of steps asks again
def estimate_time_step_cost(config: Config, shape: Shape, reset_after: bool = True) -> Cost:
    """Return the cost of a time step of all sequences and directions, of one layer."""
    return _TIME_STEP_COSTS[type(config)](config, shape, reset_after)


def _microseconds(cycles: float, device: Device) -> float:
    return cycles / (1e3 * device.clock_ghz)


def _gate_bytes(config: Config, shape: Shape) -> int:
    """Return the bytes of a step's three gates, which are read, and of its state, which is written."""
    return shape.directions * shape.batch_size * 4 * config.padded_hidden * shape.itemsize


def _block_step(config: BlockConfig, shape: Shape, reset_after: bool) -> Cost:
    device = shape.device
    threads = 32 * config.num_warps
    if shape.is_ieee:
        instructions = 40 + 1.35 * 3 * config.padded_hidden**2 * config.batch / threads
    else:
        # Of two rows a thread has every result four times, and makes it once.
        results = config.tiles * max(1, config.units * config.columns // threads) / (4 if config.batch == 2 else 1)
        rows_of_warp = config.tiles * max(1, config.units // (16 * config.num_warps))
        products = 3 * rows_of_warp * (config.columns // 8) * config.padded_hidden // (_SUMMED // shape.itemsize)
        from_shared = products * config.shared_tiles / (3 * config.tiles**2)
        # The state as a TF32 operand comes number by number, but of two rows matrix by matrix.
        each = 1 if config.batch == 2 else shape.itemsize // 2
        instructions = 40 + 15 * results + each * products + 4.3 * from_shared
    # As many programs share a multiprocessor as their registers allow; the others wait.
    programs = -(-shape.batch_size // config.batch) * shape.directions
    resident = max(1, 8 // config.num_warps)
    waves = -(-programs // (device.sms * resident))
    sharing = max(1.0, min(resident, -(-programs // device.sms)) * config.num_warps / 4)
    chain, more = (1, 1) if reset_after else (1.7, 1.15)
    cycles = waves * (_BLOCK_CHAIN * chain + _INSTRUCTION * instructions * more * sharing)
    moved = _from_l2(_gate_bytes(config, shape), device)
    return Cost(instructions=_microseconds(cycles, device), bytes=moved)


# By hand-over, the trips that a hop takes, and how often a tile is read on average: "flag" reads it in vain until it is
# there, "probe" waits for a word of it before.
_TRIPS = {"flag": 1, "probe": 1.5}
_READS = {"flag": 2, "probe": 1}


def _grid_step(config: GridConfig, shape: Shape, reset_after: bool) -> Cost:
    device = shape.device
    threads = 32 * config.slices
    if shape.is_ieee and config.register_tiles:
        words = config.lane_words(config.lanes_per_slice) * config.rows
        products = 3 * config.units * config.lanes_per_slice / 16 * words
        instructions = 120 + products + 3.5 * words + 3 * config.lanes_per_slice * config.rows
    elif shape.is_ieee:
        instructions = 80 + 1.35 * 3 * config.units * config.padded_hidden * config.batch / threads
    else:
        results = max(1, config.units * config.batch // threads)
        weight_tiles = config.weight_tiles(shape.itemsize)
        chunks = weight_tiles // 3 * config.depth(shape.itemsize) // (_SUMMED // shape.itemsize)
        products = 3 * (config.units // 16) * (config.batch // 8) * chunks
        words = config.state_registers(shape.itemsize) / 4
        from_shared = 2 * (weight_tiles - config.register_tiles) * config.units / 16
        sums = 3 * config.units * config.batch / 32
        instructions = 8 + 41 * results + 2.9 * sums + 2.5 * words + 5.3 * from_shared + 2 * products
    handovers, more = (1, 1) if reset_after else (2, 1.4)
    rounds = config.count_rounds(shape.batch_size, shape.directions)
    cycles = rounds * config.tiles * (_GRID_CHAIN + _INSTRUCTION * instructions * more * config.slices / 4)
    hop = (_HOP + _CROWD * config.programs) * _TRIPS[config.handover]
    if config.handover != "probe":
        sent = config.rows * config.units * shape.itemsize
        hop += _SHARED_LINE * config.programs * max(0.0, _LINE / sent - 1)
    rows = -(-shape.batch_size // config.batch) * config.rows
    read = shape.directions * config.programs * rows * config.padded_hidden * shape.itemsize
    # Of two tiles in turn, one has come by the time the other is done: nothing is read in vain.
    read *= handovers * (1 if config.tiles > 1 else _READS[config.handover])
    return Cost(
        instructions=_microseconds(cycles, device),
        hop=_microseconds(rounds * handovers * hop, device),
        bytes=_from_l2(read + _gate_bytes(config, shape), device),
    )


def _step_kernel_cost(config: StepConfig, shape: Shape, reset_after: bool) -> Cost:
    device = shape.device
    tiles = -(-shape.batch_size // config.batch)
    programs = config.programs * tiles * shape.directions
    # Of an iteration, in which warps share the products. As TF32 operands are rounded first: by several warps, where
    # these have no slices of their own.
    numbers = 3 * config.units * config.batch * config.depth // config.num_warps
    products = numbers // (16 * 8 * (_SUMMED // shape.itemsize))
    if shape.is_ieee:
        instructions = 50 + 1.2 * numbers / 32
    elif shape.itemsize == 2:
        instructions = 45 + 2.4 * products
    else:
        instructions = (140 if config.slices > 1 else 300) + 4 * products
    sharing = max(1.0, programs / device.sms * config.num_warps / 4)
    iterations = -(-shape.hidden_size // config.depth)
    computed = _microseconds(_INSTRUCTION * iterations * instructions * sharing, device)
    # Loads are under way while products are made, from memory beside those from the L2: what takes longest counts.
    weights = 3 * shape.hidden_size**2 * shape.itemsize * shape.directions
    state = programs * config.batch * shape.hidden_size * shape.itemsize
    moved = max(_from_l2_or_memory(weights, device), _from_l2(weights * tiles + state, device))
    if config.batch > 16:
        moved /= _STEP_REACHED
    else:
        # All stages but one are on their way at once; so are those of the programs that share a multiprocessor.
        resident = max(1, device.shared_memory // config.shared_memory(shape.itemsize))
        trips = iterations / max(1, config.num_stages - 1) * max(1.0, programs / (resident * device.sms))
        latency = _STEP_LATENCY if _stays_in_l2(weights, device) else _STEP_MEMORY_LATENCY
        moved += _microseconds(trips * latency, device)
    moved += _from_l2(_gate_bytes(config, shape), device)
    cost = Cost(instructions=_microseconds(_STEP_CHAIN, device) + max(0.0, computed - moved), bytes=moved)
    return cost * (1 if reset_after else 1.5)


_TIME_STEP_COSTS = {BlockConfig: _block_step, GridConfig: _grid_step, StepConfig: _step_kernel_cost}


def _weights_on_chip(problem: Problem, config: BlockConfig | GridConfig, device: Device) -> float:
    """Return the microseconds for all programs to read their part of W_hh: once from memory, then from the L2."""
    weights = 3 * problem.hidden_size**2 * problem.dtype.itemsize
    times = -(-problem.batch_size // config.batch) if isinstance(config, BlockConfig) else config.copies
    copies = _from_l2(weights * problem.directions * (times - 1), device)
    return _from_l2_or_memory(weights * problem.directions, device) + copies


def _from_l2(size: float, device: Device) -> float:
    """Return the microseconds for the multiprocessors to read so many bytes, all at once."""
    return size / (_L2_BYTES * device.sms * device.clock_ghz * 1e3)


def _from_l2_or_memory(size: int, device: Device) -> float:
    """Return the microseconds to read ``size`` bytes once a step: from the L2 where they can stay there."""
    if _stays_in_l2(size, device):
        return _from_l2(size, device)
    return size / (0.9 * device.memory_gbs * 1e3)


def _stays_in_l2(size: int, device: Device) -> bool:
    return size <= 0.7 * device.l2_bytes


def _flops(problem: Problem, device: Device) -> float:
    """Return what products get done, in FLOPs a microsecond."""
    return _REACHED * _flops_of_cycle(problem, device) * device.sms * device.clock_ghz * 1e3


def _flops_of_cycle(problem: Problem, device: Device) -> float:
    """Return the FLOPs a cycle that a multiprocessor makes at its best."""
    if problem.is_ieee:
        return _ORDINARY_FLOPS
    return _MATRIX_FLOPS.get(device.compute_capability, _MATRIX_FLOPS_ELSEWHERE) / (problem.dtype.itemsize // 2)


def _own_projection(problem: Problem, config: Config, device: Device, tile: ProjectionConfig | None) -> Cost:
    """Return the cost of our own projection, in tiles as they are usual if ``tile`` is None.

    Multiprocessors without a tile have nothing to do, as with many inputs of few sequences.
    """
    pairs = problem.steps * -(-problem.batch_size // config.rows) * config.rows
    cycles = 0.0
    for inputs, layers in problem.input_sizes:
        aligned = inputs * problem.dtype.itemsize % 16 == 0
        used = tile or projection_config(problem.hidden_size, problem.dtype, problem.precision, aligned)
        programs = math.prod(used.launch_grid(pairs, config.padded_hidden, problem.directions))
        flops = 2 * used.rows * used.cols * used.depth * -(-inputs // used.depth)
        cycles += layers * -(-programs // device.sms) * flops / (_REACHED * _flops_of_cycle(problem, device))
    least = _projection(problem, device).total
    return Cost(projection=max(_microseconds(cycles * (_IEEE_PROJECTION if problem.is_ieee else 1), device), least))


def _projection(problem: Problem, device: Device) -> Cost:
    """Return the cost of W_ih x, of all steps and layers, where all multiprocessors have as much of it to do."""
    rows = problem.steps * problem.batch_size
    microseconds = 0.0
    for inputs, layers in problem.input_sizes:
        gates = 3 * problem.hidden_size * problem.directions
        flops = 2 * rows * inputs * gates / _flops(problem, device)
        moved = (rows * (inputs + gates) + gates * inputs) * problem.dtype.itemsize
        microseconds += layers * max(flops, _from_l2_or_memory(moved, device))
    return Cost(projection=microseconds)


def _arranging(problem: Problem, config: Config, device: Device) -> Cost:
    """Return the cost of laying out what cuBLAS has multiplied, and of what it takes beside our one launch a layer.

    That is a launch more for each direction. The products are read and written while they are in the L2.
    """
    read = problem.batch_size * problem.hidden_size
    written = -(-problem.batch_size // config.rows) * config.rows * config.padded_hidden
    numbers = problem.num_layers * problem.directions * problem.steps * 3 * (read + written)
    moved = _from_l2(numbers * problem.dtype.itemsize, device)
    return Cost(launch=_LAUNCH * problem.num_layers * problem.directions, projection=moved)


def _torchs_cost(problem: Problem, device: Device, in_graph: bool) -> Cost:
    itemsize, hidden, batch = problem.dtype.itemsize, problem.hidden_size, problem.batch_size
    # gates of the input and of the state, written and read again, and the states
    moved = batch * hidden * itemsize * 12
    flops = 6 * hidden**2 * batch / _flops(problem, device)
    if itemsize == 4 and not problem.is_ieee:
        flops *= _TORCHS_TF32
    weights = _from_l2_or_memory(3 * hidden**2 * itemsize, device)
    if hidden <= _TORCHS_PERSISTENT_UP_TO and problem.layout == "dense" and batch <= 1024:
        cycles = _TORCHS_PERSISTENT_STEP + _TORCHS_PERSISTENT_UNIT * hidden * (2 if problem.is_ieee else 1)
        chain = _microseconds(cycles, device)
        if itemsize == 2 and batch >= _TORCHS_PERSISTENT_BATCH:
            chain *= _TORCHS_PERSISTENT_BATCHED
        step = Cost(instructions=max(chain, flops), bytes=_from_l2_or_memory(moved, device))
    else:
        work = max(flops, weights) + _from_l2_or_memory(moved, device)
        least = _TORCHS_STEP_IN_GRAPH if in_graph else _TORCHS_STEP
        gap = _TORCHS_GAP_IN_FP32 if itemsize == 4 else _TORCHS_GAP
        step = Cost(launch=max(least - work, gap), bytes=work)
    turned = 0.0
    if problem.reverse or problem.layout == "lengths":  # input and output are turned, or packed and padded
        turned = 2 * (problem.input_size + hidden) * itemsize * problem.steps * batch / (device.memory_gbs * 1e3)
    whole = Cost(launch=_LAUNCH * 2 * problem.num_layers * problem.directions, bytes=turned)
    # Both directions' launches may be under way at once: their work is done, and one of them waited for.
    step = step * problem.directions + Cost(launch=step.launch * (1 - problem.directions))
    return step * (problem.steps * problem.num_layers) + _projection(problem, device) + whole
