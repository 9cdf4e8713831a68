"""Tests that tuning compiles ahead, without a GPU and without memory, the kernels that a call will use."""

import dataclasses

import pytest

from triton_gru.launch import execute
from triton_gru.plan.heuristic import heuristic
from triton_gru.tuning.compile_pool import MAX_STACK_BYTES, compile_call, compile_candidate, stack_bytes
from triton_gru.tuning.example import open_example
from triton_gru.tuning.space import Candidate

from ..planted import change_problem
from .harness import KNOWN_DEVICES, KernelStats, set_compile_target

PROBLEM = change_problem(steps=256, batch_size=3, input_size=16, hidden_size=16)


@pytest.mark.parametrize("fields", [{}, {"layout": "packed"}, {"steps": 1}], ids=str)
def test_compiling_ahead_gives_the_kernel_of_a_call(fields):
    device = KNOWN_DEVICES["H200"]
    set_compile_target(device)
    problem = dataclasses.replace(PROBLEM, **fields)
    kernel = "step" if problem.steps == 1 else "grid"
    candidate = Candidate(kernel, heuristic(kernel, problem, device))
    *_, compiled = compile_call(problem, candidate, device)  # the scan
    with open_example(problem, "cpu") as example:  # its tensors have addresses
        launches = list(execute.launches(example.call, candidate.config, device, *execute.allocate(example.call)))
    kernels = [launch.kernel for launch in launches]

    def count_compiled() -> list[int]:
        """Return how many variants of each kernel Triton has in memory."""
        return [len(kernel.device_caches[device.name][0]) for kernel in kernels]

    before = count_compiled()
    scan = launches[-1].compile()
    assert count_compiled() == before, "the call compiled a kernel again"
    assert compiled.asm["ptx"] == scan.asm["ptx"]
    assert stack_bytes(compiled) == KernelStats(scan).stack
    assert compile_candidate(problem, device, candidate) == (
        "it spills registers" if stack_bytes(compiled) > MAX_STACK_BYTES else ""
    )


def test_a_candidate_that_spills_is_rejected(monkeypatch):
    """Check with a limit of -1 bytes, which the stack of any kernel exceeds."""
    device, candidate = KNOWN_DEVICES["H200"], Candidate("grid", heuristic("grid", PROBLEM, KNOWN_DEVICES["H200"]))
    monkeypatch.setattr("triton_gru.tuning.compile_pool.MAX_STACK_BYTES", -1)
    assert compile_candidate(PROBLEM, device, candidate) == "it spills registers"
