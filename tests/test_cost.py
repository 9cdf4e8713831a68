"""The cost model: its terms, how they grow, and estimates against times measured on an H200."""

import dataclasses

import pytest
import torch

from triton_gru.plan.config import StepConfig
from triton_gru.plan.cost import Cost, estimate_call_cost, estimate_time_step_cost
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.planner import choose
from triton_gru.tuning.space import candidates

from .planted import PROBLEM, change_problem

H200 = KNOWN_DEVICES["H200"]
KERNELS = ("block", "grid", "step")


def estimate_heuristic_cost(kernel, problem=PROBLEM, device=H200, **options):
    """Return the estimated cost of a call of ``kernel`` in the heuristic's configuration, or of nn.GRU ("torch")."""
    config = None if kernel == "torch" else heuristic(kernel, problem, device)
    return estimate_call_cost(problem, config, device, **options)


def test_costs_add_up():
    assert Cost(1, 2) + Cost(1, hop=3) == Cost(2, 2, 0, 3)
    assert 2.5 * Cost(2).total == (Cost(2) * 2.5).total == 5
    assert str(Cost(launch=2, hop=1)) == "3.00 us: launch 2 us, hop 1 us"


# Microseconds a step, measured on an H200 in a graph of 512 steps with the projection (space.csv of its first light).
# The kernels took up to 50 % more instructions then, and ``block`` had eight rows in a program.
MEASURED = {
    ("fp16", 64, 1): 0.239, ("fp16", 128, 1): 0.428, ("tf32", 64, 1): 0.377, ("fp16", 192, 1): 0.70,
    ("fp16", 256, 1): 0.711, ("fp16", 512, 1): 0.927, ("fp16", 1024, 1): 1.28, ("fp16", 2048, 1): 2.185,
    ("fp16", 512, 64): 1.751, ("fp16", 1024, 64): 4.061, ("fp16", 2048, 16): 4.88, ("tf32", 192, 16): 0.975,
    ("tf32", 512, 1): 1.149, ("tf32", 1024, 16): 3.089, ("tf32", 1024, 64): 8.96,
}  # fmt: skip


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: "{}-H{}-B{}".format(*case))
def test_estimates_agree_with_measured_times(case):
    precision, hidden, batch = case
    dtype, fp32 = (torch.float16, "ieee") if precision == "fp16" else (torch.float32, "tf32")
    problem = change_problem(
        steps=512, batch_size=batch, input_size=hidden, hidden_size=hidden, dtype=dtype, precision=fp32
    )
    plan = choose(problem, H200)
    assert plan.kernel == ("block" if hidden <= 128 else "grid")
    config = dataclasses.replace(plan.config, batch=8) if plan.kernel == "block" else plan.config
    estimate = estimate_call_cost(problem, config, H200, in_graph=True).total / 512
    assert 0.65 <= estimate / MEASURED[case] <= 1.25


@pytest.mark.parametrize(
    "kernel, hidden", [("block", 64), ("grid", 512), ("step", 4096), ("torch", 64), ("torch", 512)]
)
def test_more_work_costs_more(kernel, hidden):
    problem = change_problem(hidden_size=hidden, input_size=hidden)
    base = estimate_heuristic_cost(kernel, problem)
    assert all(term >= 0 for term in base) and base.total > 0
    for fields in (
        {"steps": 200}, {"num_layers": 2}, {"batch_size": 4096}, {"input_size": 64 * hidden},
        {"bidirectional": True, "batch_size": 512},
    ):  # fmt: skip
        assert estimate_heuristic_cost(kernel, dataclasses.replace(problem, **fields)).total > base.total, fields
    slow = dataclasses.replace(H200, clock_ghz=1.0, memory_gbs=1000.0)
    assert estimate_heuristic_cost(kernel, problem, slow).total >= base.total
    assert estimate_heuristic_cost(kernel, problem, in_graph=True).total <= base.total


def test_each_term_follows_its_cause():
    block, grid, step = (
        estimate_heuristic_cost(kernel, change_problem(hidden_size=h))
        for kernel, h in (("block", 64), ("grid", 512), ("step", 4096))
    )
    assert block.hop == 0 and grid.hop > 0 and step.hop == 0, "the state stays in the program, or is handed over"
    read_us = 3 * 4096**2 * 2 / (0.9 * H200.memory_gbs * 1e3)  # of W_hh in fp16, at 90 % of the memory's rate
    assert step.bytes >= 100 * read_us, "each step reads W_hh from memory once"
    reset_before = estimate_heuristic_cost("grid", change_problem(reset_after=False))
    assert reset_before.hop == 2 * grid.hop and reset_before.instructions > grid.instructions
    # If the batch does not fit the chip at once, parts of it run one after the other, each through all steps.
    config = heuristic("grid", change_problem(batch_size=1), H200)
    config_of_8_rows = dataclasses.replace(config, rows=8, copies=1)
    batch_costs = [
        estimate_time_step_cost(config_of_8_rows, change_problem(batch_size=batch).shape_on(H200)) for batch in (8, 16)
    ]
    assert (
        batch_costs[1].instructions == 2 * batch_costs[0].instructions and batch_costs[1].hop == 2 * batch_costs[0].hop
    )
    # cuDNN has a persistent kernel for small hidden sizes. Exception: packed input.
    small = change_problem(hidden_size=64)
    assert (
        estimate_heuristic_cost("torch", dataclasses.replace(small, layout="packed")).total
        > 2 * estimate_heuristic_cost("torch", small).total
    )


@pytest.mark.parametrize(
    "hidden, units, depth, stages, microseconds",
    [
        (4096, 16, 32, 2, 106.7), (4096, 16, 64, 2, 64.9), (4096, 16, 64, 3, 41.1), (4096, 32, 128, 3, 31.9),
        (4096, 32, 128, 4, 30.5), (1024, 16, 64, 3, 6.2), (512, 16, 64, 3, 4.1),
    ],
)  # fmt: skip
def test_step_estimates_agree_with_measured_pipelines(hidden, units, depth, stages, microseconds):
    """Times in fp16 at B = 1, in a graph, from perf/results/NVIDIA-H200/second-light/space.csv."""
    config = StepConfig(units=units, programs=hidden // units, batch=16, depth=depth, num_warps=4, num_stages=stages)
    problem = change_problem(hidden_size=hidden, input_size=hidden, batch_size=1, steps=100)
    us_100_steps, us_50_steps = (
        estimate_call_cost(dataclasses.replace(problem, steps=n), config, H200, True).total for n in (100, 50)
    )
    assert 0.8 < (us_100_steps - us_50_steps) / 50 / microseconds < 1.25


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
def test_estimates_every_configuration(device):
    for hidden, batch in ((1, 1), (64, 3), (200, 100), (1024, 16), (5000, 1)):
        for dtype, precision in ((torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")):
            problem = change_problem(hidden_size=hidden, batch_size=batch, dtype=dtype, precision=precision)
            for _, config, _ in candidates(problem, device):
                assert 0 < estimate_call_cost(problem, config, device).total < 1e7
