"""What tuning compiles ahead, without a GPU and without memory, is what a call on one will look for."""

import dataclasses

import pytest
import torch

from triton_gru.launch import execute
from triton_gru.plan.heuristic import heuristic
from triton_gru.plan.problem import Problem
from triton_gru.tuning.compile_pool import Facts, compiled
from triton_gru.tuning.example import example
from triton_gru.tuning.space import Candidate

from .harness import KNOWN, pretend
from .harness import Facts as FactsOfHarness

PROBLEM = Problem(256, 3, 16, 16, 1, False, torch.float16, "ieee", True)


@pytest.mark.parametrize("fields", [{}, {"layout": "packed"}, {"steps": 1}], ids=str)
def test_it_is_the_same_as_of_a_call(fields):
    device = KNOWN["H200"]
    pretend(device)
    problem = dataclasses.replace(PROBLEM, **fields)
    kernel = "step" if problem.steps == 1 else "grid"
    candidate = Candidate(kernel, heuristic(kernel, problem, device))
    found = compiled(problem, candidate, device)
    with example(problem, "cpu") as each:  # whose tensors have addresses
        made = list(execute.launches(each.call, candidate.config, device, *execute.allocate(each.call)))
    kernels = [each.kernel for each in made]
    before = [len(each.device_caches[device.name][0]) for each in kernels]
    scan = made[-1].compile()
    assert [len(each.device_caches[device.name][0]) for each in kernels] == before, "compiled anew"
    of_harness = FactsOfHarness(scan)
    assert isinstance(found, Facts) and found.registers > 0
    assert (found.stack, found.shared) == (of_harness.stack, of_harness.shared)
