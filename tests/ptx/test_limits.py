"""Tests of kernels with element offsets beyond 2**31. Only the programs of the last rows of a launch are executed.

The tensors take no memory where nothing touches them: see `make_sparse`.
"""

import itertools
import math
import mmap

import pytest
import torch
from torch import nn

import triton_gru
from triton_gru.accuracy import PRECISIONS, set_precision
from triton_gru.call.bind import bind_gru
from triton_gru.launch import execute
from triton_gru.plan.heuristic import HEURISTICS
from triton_gru.plan.validity import MAX_SIZE

MAP_NORESERVE = 0x4000  # of linux/mman.h: Python names it from 3.13 on
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE


def make_sparse(*shape, dtype=torch.float16):
    """Return a tensor of zeros. Only its pages that are touched take memory."""
    size = math.prod(shape)
    memory = mmap.mmap(-1, max(size, 1) * dtype.itemsize, flags=FLAGS)
    return torch.frombuffer(memory, dtype=dtype)[:size].view(shape)


def make_gru(inputs, hidden, **options):
    """Return a GRU in fp16 whose weights are from `make_sparse`."""
    gru = triton_gru.GRU(inputs, hidden, dtype=torch.float16, device="meta", **options).eval()
    for name, weight in gru.named_parameters():
        setattr(gru, name, nn.Parameter(make_sparse(*weight.shape), requires_grad=False))
    return gru


def make_launches(kernel, device, gru, x, hx=None):
    """Return the launches of a call, the kernel's configuration, and the call's output."""
    call = bind_gru(gru, x, hx)
    problem = call.problem
    config = HEURISTICS[kernel](
        problem.hidden_size, problem.batch_size, problem.directions, *PRECISIONS["fp16"], device
    )
    features = problem.directions * problem.hidden_size
    output = make_sparse(problem.steps, problem.batch_size, features)
    h_n = make_sparse(problem.directions, problem.batch_size, problem.hidden_size)

    def allocate(like, *shape, dtype=torch.float16):
        return make_sparse(*shape, dtype=dtype)

    return list(execute.launches(call, config, device, output, h_n, allocate)), config, output


def programs_of_last_rows(launch, config, directions):
    """Return the indices of a launch's programs that compute the last tile of the batch, in all directions."""
    x, y, z = (*launch.programs, 1, 1)[:3]  # the missing dimensions have one program
    name = launch.kernel.__name__
    if name == "block_scan":  # the last program of each direction
        return [(x // directions * (direction + 1) - 1, 0, 0) for direction in range(directions)]
    programs_per_tile = 1 if name == "input_projection" else config.programs
    return itertools.product(range(x - programs_per_tile, x), range(y), range(z))


@pytest.mark.parametrize("kernel, steps", [("block", 2), ("step", 1), ("step", 2)])
@pytest.mark.parametrize("batch, hidden, inputs", [(111_059_956, 32, 32), (MAX_SIZE, 1, 1)])
def test_last_rows_of_a_large_batch_agree_with_torch(kernel, steps, batch, hidden, inputs, gpu):
    set_precision("fp16")
    gru = make_gru(inputs, hidden, bidirectional=True)
    for weight in gru.parameters():
        weight.uniform_(-0.5, 0.5)
    x = make_sparse(steps, batch, inputs)
    launches, config, output = make_launches(kernel, gpu.device, gru, x)
    first = (batch - 1) // config.batch * config.batch  # the first row of the last tile
    x[:, first:].normal_()
    for launch in launches:
        for program in programs_of_last_rows(launch, config, 2):
            gpu.run_program(launch, program)
    expected, _ = nn.GRU.forward(gru.float(), x[:, first:].float())
    assert (output[:, first:] - expected).abs().max() < 4e-3


def test_last_rows_of_w_ih_beyond_2_31_elements_agree_with_torch(gpu):
    set_precision("fp16")
    hidden, inputs, rows = 65_536, 10_944, 128  # the last program computes the last 128 units
    gru = make_gru(inputs, hidden)
    assert gru.weight_ih_l0.numel() > 2**31
    gru.weight_ih_l0[-rows:].uniform_(-0.05, 0.05)
    x = torch.randn(2, 3, inputs).half()
    (projection, *_), config, _ = make_launches("step", gpu.device, gru, x)
    gpu.run_program(projection, [size - 1 for size in projection.programs])
    gi = projection.args[projection.kernel.arg_names.index("gi")].view(2, 3, config.rows, hidden)
    expected = x.float() @ gru.weight_ih_l0[-rows:].float().T
    assert (gi[:, 2, :3, -rows:] - expected).abs().max() < 2e-2


def test_last_rows_of_w_hh_beyond_2_31_elements_agree_with_torch(gpu):
    set_precision("fp16")
    hidden = 33_024
    gru = make_gru(1, hidden)
    weights = gru.weight_hh_l0.view(3, hidden, hidden)
    assert 2**31 < 2 * hidden**2 < 2**32  # the offset of n's rows: it fits 32 bits only as unsigned
    hx = torch.randn(1, 3, hidden).half()
    (step,), config, output = make_launches("step", gpu.device, gru, torch.zeros(1, 3, 1).half(), hx)
    weights, state = weights[:, -config.units :].uniform_(-0.05, 0.05), hx[0].float()
    gpu.run_program(step, (config.programs - 1, 0, 0))
    (r, z), n = (weights[:2].float() @ state.T).sigmoid(), weights[2].float() @ state.T
    n = (r * n).tanh()
    expected = n.T + z.T * (state[:, -config.units :] - n.T)
    assert (output[0, :, -config.units :] - expected).abs().max() < 4e-3
