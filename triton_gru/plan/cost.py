"""An estimate of the time of a call. The heuristic uses it if nothing was measured, and tuning orders candidates by it.

The estimate counts instructions, bytes, FLOPs and hand-overs. The clock and the bandwidth of memory are the device's.
Most other constants are fitted to times of earlier kernels on an H200 (perf/NOTES.md). Some are measured, documented or
assumed. ``scripts/cost_errors.py`` compares estimates with measured times.
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
    """The estimated time of a call in microseconds, by cause. The parts add up.

    Attributes:
        launch: starting kernels, the gaps between them, and clearing memory for them.
        projection: the input projection, by FLOPs or by bytes, whichever takes longer. With cuBLAS it includes
            arranging the products.
        instructions: the instructions of the steps, of all warps that share a multiprocessor. If parts of the batch or
            directions run one after the other, the instructions of each are added. Exception: of the products of
            ``step``, only the time beyond that of its loads.
        hop: handing the state over from multiprocessor to multiprocessor.
        bytes: reading W_hh, the state and the gates, and writing the state, in the L2 or in memory. For nn.GRU with one
            launch a step it includes products. For nn.GRU it also includes rearranging input and output.
    """

    launch: float = 0.0
    projection: float = 0.0
    instructions: float = 0.0
    hop: float = 0.0
    bytes: float = 0.0

    @property
    def total(self) -> float:
        """Return the microseconds of all causes together."""
        return sum(self)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(operator.add, self, other))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(times * microseconds for microseconds in self))

    def __str__(self) -> str:
        """Return the total and its parts, the longest first. Parts below 1 % of the total are left out."""
        terms = sorted(self._asdict().items(), key=lambda term: -term[1])
        parts = [f"{name} {format_rough_time(us)}" for name, us in terms if us >= self.total / 100]
        return f"{format_time(self.total)}: {', '.join(parts)}"


# "Fitted" means fitted to times on an H200: of nn.GRU, and of 1,028 configurations of earlier kernels. "Assumed" values
# are older than any measurement, and the fit kept them. Cycles are those of a multiprocessor.
#
# Constants of the kernels:
_BLOCK_EMPTY_STEP_CYCLES = 110  # of a step without products: barriers, load of the state, three activations. Fitted.
_GRID_EMPTY_STEP_CYCLES = 260  # of the same step in ``grid``, for each tile in flight. Fitted.
_STEP_EMPTY_STEP_CYCLES = 900  # of the same step in ``step``. Assumed.
_CYCLES_PER_INSTRUCTION = 3.6  # of a warp that has a scheduler to itself, with waits for shared memory. Fitted.
_HOP_CYCLES = 410  # from a store until another multiprocessor reads the value; 0.208 us measured on an H200.
_HOP_CYCLES_PER_PROGRAM = 4.2  # added to a hop for each program that polls. Fitted.
# Added to a hop of "flag": for each program, times the number of other programs with words in the same line. Fitted.
_LINE_SHARING_CYCLES = 1.8
_LINE_BYTES = 128  # of a line of memory, by NVIDIA's architecture.
_PRODUCT_DEPTH_BYTES = 32  # bytes of a row that one matrix product of 16 rows and 8 columns sums over (PTX's mma).
_L2_BYTES_PER_CYCLE = 19  # that the L2 gives each multiprocessor if all read at once. Fitted.
_STEP_L2_LATENCY_CYCLES = 400  # of a load of ``step`` with tiles of 16 rows; 36 configurations on an H200.
_STEP_MEMORY_LATENCY_CYCLES = 1090  # of the same load from memory. The same source.
_STEP_BANDWIDTH_FRACTION = 0.55  # of the rates that other reads reach, for ``step`` with larger tiles. Fitted.
_MEMORY_BANDWIDTH_FRACTION = 0.9  # of the bandwidth of memory, that reads reach. Assumed.
_L2_FRACTION = 0.7  # of the L2: data up to this size stays there, and is read from there. Assumed.
_LAUNCH_US = 2.5  # from one kernel to the next, if the host is ahead or in a CUDA graph. Assumed.
_PYTHON_LAUNCH_US = 8.0  # of a launch from Python, if the host is not ahead. Assumed.
# Constants of nn.GRU with one launch a step (cuDNN's standard algorithm):
_NN_GRU_EAGER_STEP_US = 11.0  # shortest step, eager; measured on an H200: 11 to 12 above H = 192.
_NN_GRU_GRAPH_STEP_US = 4.5  # shortest step, in a CUDA graph; measured on an H200: 4.5 to 10 above H = 192.
_NN_GRU_GAP_US = 4.0  # shortest gap between the launches of two steps, 16-bit dtypes. Fitted.
_NN_GRU_FP32_GAP_US = 5.0  # shortest gap between the launches of two steps, float32. Fitted.
# With either algorithm, a step's small product in TF32 takes this many times its time at `_flops_per_us`. Fitted.
_NN_GRU_TF32_FACTOR = 5
# Constants of nn.GRU with cuDNN's persistent algorithm, where all steps are one launch:
_NN_GRU_PERSISTENT_MAX_HIDDEN = 128  # hidden units up to which it runs, for dense input.
_NN_GRU_PERSISTENT_MAX_BATCH = 1024  # batch size up to which it runs.
_NN_GRU_PERSISTENT_STEP_CYCLES = 485  # of a step, besides those for hidden units. Fitted.
_NN_GRU_PERSISTENT_CYCLES_PER_UNIT = 7.2  # added to a step for each hidden unit, twice in fp32 ieee. Fitted.
_NN_GRU_PERSISTENT_BATCH = 16  # batch size from which the next factor applies, 16-bit dtypes.
_NN_GRU_PERSISTENT_BATCH_FACTOR = 2.2  # times the cycles of a step. Fitted.
# Constants of matrix products:
# Peak FLOPs per cycle per multiprocessor, 16 bits, by compute capability.
_MATRIX_FLOPS = {80: 2048, 90: 4096, 100: 8192}
_OTHER_MATRIX_FLOPS = 1024  # the same for other compute capabilities.
_FP32_FLOPS = 256  # the same of the ordinary fp32 units, which do 128 multiply-adds. Exception: on sm_80 they do 64.
_GEMM_EFFICIENCY = 0.5  # fraction of these peaks that a product of middling size reaches. Assumed.
# Our own projection on the ordinary fp32 units takes this many times its time by the numbers above. Fitted.
_IEEE_PROJECTION_FACTOR = 3


def estimate_call_cost(
    problem: Problem,
    config: Config | None,
    device: Device,
    in_graph: bool = False,
    projection: Projection | None = None,
) -> Cost:
    """Return the estimated cost of a call.

    Args:
        problem, device: the call, and the device that it runs on.
        config: the kernel's configuration, or None for torch.nn.GRU.
        in_graph: whether the call runs in a CUDA graph, where no step waits for the host. ``block`` and ``grid`` have
            the same estimate in both cases.
        projection: `CUBLAS`, a tile of our own projection, or None for the usual tile. nn.GRU ignores it.
    """
    if config is None:
        return _nn_gru_cost(problem, device, in_graph)
    layers, steps = problem.num_layers, problem.steps
    step = estimate_time_step_cost(config, problem.shape_on(device), problem.reset_after)
    work = step * (steps * layers)
    if projection == CUBLAS:
        work += _projection_cost(problem, device) + _arranging_cost(problem, config, device)
    elif is_fused_step(config, problem):
        work += _projection_cost(problem, device) * (_IEEE_PROJECTION_FACTOR if problem.is_ieee else 1)
    else:
        work += _own_projection_cost(problem, config, device, projection)
    if not isinstance(config, StepConfig):
        # A layer's launches are a projection and a scan, if all steps are one chunk. ``grid`` clears its mailbox before
        # the scan. Each layer loads W_hh once.
        launch = _LAUNCH_US * layers * (2 if isinstance(config, BlockConfig) else 3)
        return work + Cost(launch=launch, bytes=layers * _weight_load_us(problem, config, device))
    launches = layers * (1 if problem.reset_after else 2)
    if problem.is_single_step:
        return work + Cost(launch=_LAUNCH_US * launches)
    # Each launch waits for the launch before it. Outside of a CUDA graph the GPU works while the host prepares the next
    # launch. So only the host's time beyond this work is added. Each layer has one more launch, the projection.
    gaps_us = _LAUNCH_US * steps * launches
    if not in_graph:
        gaps_us = max(gaps_us, _PYTHON_LAUNCH_US * steps * launches - work.total)
    return work + Cost(launch=_LAUNCH_US * layers + gaps_us)


@functools.lru_cache(maxsize=4096)  # calls that differ in the number of steps share this
def estimate_time_step_cost(config: Config, shape: Shape, reset_after: bool = True) -> Cost:
    """Return the cost of a time step of one layer, for all sequences and directions.

    The projection and launches are left out.
    """
    return _TIME_STEP_COSTS[type(config)](config, shape, reset_after)


def _microseconds(cycles: float, device: Device) -> float:
    return cycles / (1e3 * device.clock_ghz)


def _gate_bytes(config: Config, shape: Shape) -> int:
    """Return the bytes that a step reads of its three gate inputs and writes of its state."""
    return shape.directions * shape.batch_size * 4 * config.padded_hidden * shape.itemsize


def _block_step_cost(config: BlockConfig, shape: Shape, reset_after: bool) -> Cost:
    """Return the cost of a time step of ``block``: its instructions, and reads and writes of gates and state.

    Instructions are counted, with fitted factors. Those of ``reset_after=False`` are assumed.
    """
    device = shape.device
    threads = 32 * config.num_warps
    if shape.is_ieee:
        instructions = 40 + 1.35 * 3 * config.padded_hidden**2 * config.batch / threads
    else:
        # With two rows, four columns hold the same results, and a thread computes the gates of one.
        results = config.tiles * max(1, config.units * config.columns // threads) / (4 if config.batch == 2 else 1)
        rows_of_warp = config.tiles * max(1, config.units // (16 * config.num_warps))
        depth = _PRODUCT_DEPTH_BYTES // shape.itemsize
        products = 3 * rows_of_warp * (config.columns // 8) * config.padded_hidden // depth
        from_shared = products * config.shared_tiles / (3 * config.tiles**2)
        # Earlier kernels loaded a TF32 operand of the state value by value, and with two rows matrix by matrix. Today's
        # kernels load words of four values (kernels/fragments.py), which this estimate omits (perf/NOTES.md).
        loads_per_product = 1 if config.batch == 2 else shape.itemsize // 2
        instructions = 40 + 15 * results + loads_per_product * products + 4.3 * from_shared
    # The registers limit how many programs share a multiprocessor. Programs beyond that run in later waves.
    programs = -(-shape.batch_size // config.batch) * shape.directions
    resident = max(1, 8 // config.num_warps)
    waves = -(-programs // (device.sms * resident))
    sharing = max(1.0, min(resident, -(-programs // device.sms)) * config.num_warps / 4)
    empty_step_factor, instruction_factor = (1, 1) if reset_after else (1.7, 1.15)
    product_cycles = _CYCLES_PER_INSTRUCTION * instructions * instruction_factor * sharing
    cycles = waves * (_BLOCK_EMPTY_STEP_CYCLES * empty_step_factor + product_cycles)
    gate_us = _l2_us(_gate_bytes(config, shape), device)
    return Cost(instructions=_microseconds(cycles, device), bytes=gate_us)


# For each hand-over, the trips to the L2 that a hop takes, and how often a tile is read on average. "flag" reads the
# whole tile again until it is complete. "probe" first waits for one word of the tile.
_TRIPS = {"flag": 1, "probe": 1.5}
_READS = {"flag": 2, "probe": 1}


def _grid_step_cost(config: GridConfig, shape: Shape, reset_after: bool) -> Cost:
    """Return the cost of a time step of ``grid``: its instructions, hand-overs, and bytes of mailbox and gates.

    The factor of instructions of ``reset_after=False`` is assumed.
    """
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
        segments = weight_tiles // 3 * config.depth(shape.itemsize) // (_PRODUCT_DEPTH_BYTES // shape.itemsize)
        products = 3 * (config.units // 16) * (config.batch // 8) * segments
        words = config.state_registers(shape.itemsize) / 4
        from_shared = 2 * (weight_tiles - config.register_tiles) * config.units / 16
        sums = 3 * config.units * config.batch / 32
        instructions = 8 + 41 * results + 2.9 * sums + 2.5 * words + 5.3 * from_shared + 2 * products
    handovers, instruction_factor = (1, 1) if reset_after else (2, 1.4)
    rounds = config.count_rounds(shape.batch_size, shape.directions)
    product_cycles = _CYCLES_PER_INSTRUCTION * instructions * instruction_factor * config.slices / 4
    cycles = rounds * config.tiles * (_GRID_EMPTY_STEP_CYCLES + product_cycles)
    hop_cycles = (_HOP_CYCLES + _HOP_CYCLES_PER_PROGRAM * config.programs) * _TRIPS[config.handover]
    if config.handover != "probe":
        # Every program polls a line while the programs whose words lie in it write to it.
        sent_bytes = config.rows * config.units * shape.itemsize
        hop_cycles += _LINE_SHARING_CYCLES * config.programs * max(0.0, _LINE_BYTES / sent_bytes - 1)
    rows = -(-shape.batch_size // config.batch) * config.rows
    read_bytes = shape.directions * config.programs * rows * config.padded_hidden * shape.itemsize
    # With two tiles in turn, a tile arrives while the other tile is computed. So each tile is read once.
    read_bytes *= handovers * (1 if config.tiles > 1 else _READS[config.handover])
    return Cost(
        instructions=_microseconds(cycles, device),
        hop=_microseconds(rounds * handovers * hop_cycles, device),
        bytes=_l2_us(read_bytes + _gate_bytes(config, shape), device),
    )


def _step_kernel_cost(config: StepConfig, shape: Shape, reset_after: bool) -> Cost:
    """Return the cost of a time step of ``step`` without its launch.

    Loads of W_hh, the state and the gates take their time, and products only the time beyond that of these loads. The
    factor of ``reset_after=False`` is assumed.
    """
    device = shape.device
    tiles = -(-shape.batch_size // config.batch)
    programs = config.programs * tiles * shape.directions
    # Count the instructions of an iteration, in which warps share the products. TF32 operands are rounded first. Warps
    # that have no slices round the same operands.
    multiply_adds = 3 * config.units * config.batch * config.depth // config.num_warps
    products = multiply_adds // (16 * 8 * (_PRODUCT_DEPTH_BYTES // shape.itemsize))
    if shape.is_ieee:
        instructions = 50 + 1.2 * multiply_adds / 32
    elif shape.itemsize == 2:
        instructions = 45 + 2.4 * products
    else:
        instructions = (140 if config.slices > 1 else 300) + 4 * products
    sharing = max(1.0, programs / device.sms * config.num_warps / 4)
    iterations = -(-shape.hidden_size // config.depth)
    product_us = _microseconds(_CYCLES_PER_INSTRUCTION * iterations * instructions * sharing, device)
    # Loads from memory, loads from the L2 and products overlap, so that only the longest of the three takes time.
    weight_bytes = 3 * shape.hidden_size**2 * shape.itemsize * shape.directions
    state_bytes = programs * config.batch * shape.hidden_size * shape.itemsize
    load_us = max(_l2_or_memory_us(weight_bytes, device), _l2_us(weight_bytes * tiles + state_bytes, device))
    if config.batch > 16:
        load_us /= _STEP_BANDWIDTH_FRACTION
    else:
        # The stages except one are loaded at once, by all programs that share a multiprocessor.
        resident = max(1, device.shared_memory // config.shared_memory(shape.itemsize))
        trips = iterations / max(1, config.num_stages - 1) * max(1.0, programs / (resident * device.sms))
        latency = _STEP_L2_LATENCY_CYCLES if _stays_in_l2(weight_bytes, device) else _STEP_MEMORY_LATENCY_CYCLES
        load_us += _microseconds(trips * latency, device)
    load_us += _l2_us(_gate_bytes(config, shape), device)
    empty_step_us = _microseconds(_STEP_EMPTY_STEP_CYCLES, device)
    cost = Cost(instructions=empty_step_us + max(0.0, product_us - load_us), bytes=load_us)
    return cost * (1 if reset_after else 1.5)


_TIME_STEP_COSTS = {BlockConfig: _block_step_cost, GridConfig: _grid_step_cost, StepConfig: _step_kernel_cost}


def _weight_load_us(problem: Problem, config: BlockConfig | GridConfig, device: Device) -> float:
    """Return the microseconds in which a layer's scan loads W_hh of all directions.

    Each program of ``block``, or each copy of ``grid`` (a group of programs), loads all of W_hh. The first load comes
    from memory, or from the L2 if W_hh stays there. The others come from the L2.
    """
    weight_bytes = 3 * problem.hidden_size**2 * problem.dtype.itemsize * problem.directions
    loads = -(-problem.batch_size // config.batch) if isinstance(config, BlockConfig) else config.copies
    return _l2_or_memory_us(weight_bytes, device) + _l2_us(weight_bytes * (loads - 1), device)


def _l2_us(byte_count: float, device: Device) -> float:
    """Return the microseconds in which all multiprocessors together read ``byte_count`` bytes from the L2."""
    return byte_count / (_L2_BYTES_PER_CYCLE * device.sms * device.clock_ghz * 1e3)


def _l2_or_memory_us(byte_count: int, device: Device) -> float:
    """Return the microseconds in which ``byte_count`` bytes are read, from the L2 if they stay there, else memory."""
    if _stays_in_l2(byte_count, device):
        return _l2_us(byte_count, device)
    return byte_count / (_MEMORY_BANDWIDTH_FRACTION * device.memory_gbs * 1e3)


def _stays_in_l2(byte_count: int, device: Device) -> bool:
    """Return whether this much data is assumed to stay in the L2 until it is read again."""
    return byte_count <= _L2_FRACTION * device.l2_bytes


def _flops_per_us(problem: Problem, device: Device) -> float:
    """Return the FLOPs per microsecond that a product of middling size reaches on all multiprocessors together."""
    return _GEMM_EFFICIENCY * _peak_flops_per_cycle(problem, device) * device.sms * device.clock_ghz * 1e3


def _peak_flops_per_cycle(problem: Problem, device: Device) -> float:
    """Return the peak FLOPs per cycle per multiprocessor, in the problem's dtype and precision."""
    if problem.is_ieee:
        return _FP32_FLOPS
    flops_in_16_bits = _MATRIX_FLOPS.get(device.compute_capability, _OTHER_MATRIX_FLOPS)
    return flops_in_16_bits / (problem.dtype.itemsize // 2)  # TF32 has half the rate


def _own_projection_cost(problem: Problem, config: Config, device: Device, tile: ProjectionConfig | None) -> Cost:
    """Return the cost of our own projection of all layers, in the usual tiles if ``tile`` is None.

    The cost rises in waves of tiles, and is at least `_projection_cost`. With few steps and sequences there are fewer
    tiles than multiprocessors, and some multiprocessors are idle.
    """
    pairs = problem.steps * -(-problem.batch_size // config.rows) * config.rows
    cycles = 0.0
    for inputs, layers in problem.input_sizes:
        aligned = inputs * problem.dtype.itemsize % 16 == 0
        layer_tile = tile or projection_config(problem.hidden_size, problem.dtype, problem.precision, aligned)
        programs = math.prod(layer_tile.launch_grid(pairs, config.padded_hidden, problem.directions))
        tile_flops = 2 * layer_tile.rows * layer_tile.cols * layer_tile.depth * -(-inputs // layer_tile.depth)
        waves = -(-programs // device.sms)
        cycles += layers * waves * tile_flops / (_GEMM_EFFICIENCY * _peak_flops_per_cycle(problem, device))
    microseconds = _microseconds(cycles * (_IEEE_PROJECTION_FACTOR if problem.is_ieee else 1), device)
    return Cost(projection=max(microseconds, _projection_cost(problem, device).total))


def _projection_cost(problem: Problem, device: Device) -> Cost:
    """Return the cost of W_ih x for all steps and layers, if the work is spread evenly over all multiprocessors."""
    rows = problem.steps * problem.batch_size
    microseconds = 0.0
    for inputs, layers in problem.input_sizes:
        gates = 3 * problem.hidden_size * problem.directions
        product_us = 2 * rows * inputs * gates / _flops_per_us(problem, device)
        moved_bytes = (rows * (inputs + gates) + gates * inputs) * problem.dtype.itemsize
        microseconds += layers * max(product_us, _l2_or_memory_us(moved_bytes, device))
    return Cost(projection=microseconds)


def _arranging_cost(problem: Problem, config: Config, device: Device) -> Cost:
    """Return the cost of bringing cuBLAS's products into the scan's layout, and of the products' launches.

    A projection by cuBLAS has one more launch for each direction than our own projection. The products are read, and
    arranged values are written, at the rate of the L2.
    """
    values_read = problem.batch_size * problem.hidden_size
    values_written = -(-problem.batch_size // config.rows) * config.rows * config.padded_hidden
    values = problem.num_layers * problem.directions * problem.steps * 3 * (values_read + values_written)
    moved_us = _l2_us(values * problem.dtype.itemsize, device)
    return Cost(launch=_LAUNCH_US * problem.num_layers * problem.directions, projection=moved_us)


def _nn_gru_cost(problem: Problem, device: Device, in_graph: bool) -> Cost:
    """Return the cost of a call by torch.nn.GRU, by the algorithm that cuDNN takes for the problem."""
    itemsize, hidden, batch = problem.dtype.itemsize, problem.hidden_size, problem.batch_size
    # Assume 12 values per row and unit, for gates and states that are written and read.
    moved_us = _l2_or_memory_us(batch * hidden * itemsize * 12, device)
    product_us = 6 * hidden**2 * batch / _flops_per_us(problem, device)
    if itemsize == 4 and not problem.is_ieee:
        product_us *= _NN_GRU_TF32_FACTOR
    is_small = hidden <= _NN_GRU_PERSISTENT_MAX_HIDDEN and batch <= _NN_GRU_PERSISTENT_MAX_BATCH
    if is_small and problem.layout == "dense":
        unit_cycles = _NN_GRU_PERSISTENT_CYCLES_PER_UNIT * hidden * (2 if problem.is_ieee else 1)
        latency_us = _microseconds(_NN_GRU_PERSISTENT_STEP_CYCLES + unit_cycles, device)
        if itemsize == 2 and batch >= _NN_GRU_PERSISTENT_BATCH:
            latency_us *= _NN_GRU_PERSISTENT_BATCH_FACTOR
        step = Cost(instructions=max(latency_us, product_us), bytes=moved_us)
    else:
        weights_us = _l2_or_memory_us(3 * hidden**2 * itemsize, device)
        work_us = max(product_us, weights_us) + moved_us
        shortest_us = _NN_GRU_GRAPH_STEP_US if in_graph else _NN_GRU_EAGER_STEP_US
        gap_us = _NN_GRU_FP32_GAP_US if itemsize == 4 else _NN_GRU_GAP_US
        step = Cost(launch=max(shortest_us - work_us, gap_us), bytes=work_us)
    rearranging_us = 0.0
    if problem.reverse or problem.layout == "lengths":  # input and output are flipped in time, or packed and padded
        rearranged_bytes = 2 * (problem.input_size + hidden) * itemsize * problem.steps * batch
        rearranging_us = rearranged_bytes / (device.memory_gbs * 1e3)
    call = Cost(launch=_LAUNCH_US * 2 * problem.num_layers * problem.directions, bytes=rearranging_us)
    # The launches of two directions overlap: a step takes the work of both directions, but the launch gap of one.
    step = step * problem.directions + Cost(launch=step.launch * (1 - problem.directions))
    return step * (problem.steps * problem.num_layers) + _projection_cost(problem, device) + call
