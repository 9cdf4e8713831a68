"""Tests that tuning compiles ahead, without a GPU and without memory, the kernels that a call will use."""

import itertools

import pytest
import torch

from triton_gru.launch import execute
from triton_gru.launch.kernel_launch import Launch
from triton_gru.plan.config import CUBLAS, ProjectionConfig
from triton_gru.plan.heuristic import HEURISTICS, heuristic
from triton_gru.tuning import compile_pool
from triton_gru.tuning.compile_pool import MAX_STACK_BYTES, compile_candidate, list_launches, stack_bytes
from triton_gru.tuning.example import open_example
from triton_gru.tuning.space import Candidate

from ..planted import H200, change_problem
from .harness import KernelStats, count_variants, set_compile_target

# The second layer has other inputs than the first, and their rows are aligned.
PROBLEM = change_problem(steps=7, batch_size=3, input_size=13, hidden_size=16, num_layers=2)
TILE = ProjectionConfig(rows=64, cols=128, depth=64, num_warps=4, num_stages=3)  # not the usual tile
# Fields of `PROBLEM` to change, and the projection.
CALLS = [
    ({}, None),
    ({}, CUBLAS),
    ({}, TILE),
    ({"bidirectional": True, "input_size": 32, "dtype": torch.float32, "layout": "packed"}, None),
    ({"num_layers": 1, "reset_after": False, "dtype": torch.bfloat16, "layout": "lengths"}, TILE),
    ({"steps": 1, "reset_after": False}, None),
    ({"steps": 1, "batch_size": 1, "resets": True}, None),
    # A state has no multiple of 16 bytes.
    ({"hidden_size": 25, "batch_size": 2}, None),
    ({"hidden_size": 25, "batch_size": 1, "bidirectional": True, "num_layers": 3}, None),
]
# A call in several chunks, whose states alternate. With so many steps ``step`` would have too many launches to test.
CHUNKS = ("grid", {"steps": 20_000, "hidden_size": 129}, None)


@pytest.mark.parametrize(
    "kernel, fields, projection",
    [*((kernel, *call) for kernel, call in itertools.product(HEURISTICS, CALLS)), CHUNKS],
    ids=str,
)
def test_compiling_ahead_compiles_the_kernels_of_a_call(kernel, fields, projection):
    set_compile_target(H200)
    problem = change_problem(PROBLEM, **fields)
    config = heuristic(kernel, problem, H200)
    ahead = list_launches(problem, Candidate(kernel, config, projection), H200)
    with open_example(problem, "cpu") as example:  # its tensors have addresses
        results = execute.allocate(example.call)
        called = [
            launch
            for launch in execute.launches(example.call, config, H200, *results, projection=projection)
            if isinstance(launch, Launch)
        ]
    assert count_variants(ahead) == count_variants(called) == count_variants(ahead + called)


def test_a_candidate_is_judged_by_the_stack_of_its_kernels():
    problem = change_problem(PROBLEM, num_layers=1)
    candidate = Candidate("grid", heuristic("grid", problem, H200))
    reason = compile_candidate(problem, H200, candidate)
    set_compile_target(H200)
    *_, scan = list_launches(problem, candidate, H200)
    compiled = scan.compile()
    assert stack_bytes(compiled) == KernelStats(compiled).stack
    assert reason == ("it spills registers" if stack_bytes(compiled) > MAX_STACK_BYTES else "")


@pytest.mark.parametrize(
    "kernel, fields, projection, judged_kernels",
    [
        ("grid", {}, None, ("grid_scan",)),
        ("step", {"reset_after": False}, None, ("step_scan reset", "step_scan rest")),
        ("step", {"reset_after": False, "steps": 1}, None, ("whole_step reset", "whole_step rest")),
        ("step", {}, CUBLAS, ("step_scan all", "arrange_products")),
        # Rows of 13 features are not aligned, so that the first layer has the usual projection.
        ("block", {}, TILE, ("block_scan", "input_projection of 16")),
        (
            "block",
            {"input_size": 32, "bidirectional": True, "num_layers": 3},
            TILE,
            ("block_scan", "input_projection of 32"),
        ),
    ],
    ids=str,
)
def test_all_kernels_but_the_usual_projection_are_judged(kernel, fields, projection, judged_kernels, monkeypatch):
    """Check with planted stacks: in each call of `compile_candidate`, another kernel spills."""
    problem = change_problem(PROBLEM, **fields)
    candidate = Candidate(kernel, heuristic(kernel, problem, H200), projection)
    monkeypatch.setattr(Launch, "compile", name_kernel)
    names = {name_kernel(launch) for launch in list_launches(problem, candidate, H200)}
    for spilling in names:
        stacks = dict.fromkeys(names, MAX_STACK_BYTES) | {spilling: MAX_STACK_BYTES + 1}
        monkeypatch.setattr(compile_pool, "stack_bytes", stacks.get)
        reason = compile_candidate(problem, H200, candidate)
        assert reason == ("it spills registers" if spilling in judged_kernels else ""), spilling
    assert names.issuperset(judged_kernels)


def name_kernel(launch):
    """Return a name in place of a compiled kernel: of the function, and of the part of ``step`` or the input size."""
    cut = launch.constants["cut"]
    part = f" {cut.PART.value}" if hasattr(cut, "PART") else f" of {cut.I.value}" if hasattr(cut, "I") else ""
    return launch.kernel.__name__ + part
