"""Tests that run a few cases of each campaign. The cases are drawn again in every run, except those of time-outs."""

import random
import re

import pytest

from triton_gru.accuracy import PRECISIONS
from triton_gru.plan.config import HANDOVERS
from triton_gru.plan.planner import KERNELS

from ..pairwise import pairwise
from .campaigns import Skipped, check_many_schedules, check_nan_payloads, check_random_call, check_timeout


def run_first_case(campaign, seed: int, *args, **options) -> None:
    """Draw and run cases of a campaign until one is not skipped, and print its description.

    Raise AssertionError if a hundred cases are skipped.
    """
    draw = random.Random(seed)
    for _ in range(100):
        try:
            print(campaign(draw, *args, **options))
            return
        except Skipped:
            continue
    raise AssertionError("every case was skipped")


@pytest.mark.parametrize("gpu", ["H200", "A100", "RTX 5090"], indirect=True)
@pytest.mark.parametrize("number", range(2))
def test_random_calls_agree_with_float64(number, gpu, seed):
    run_first_case(check_random_call, seed, gpu)


@pytest.mark.parametrize("number", range(4))
def test_four_schedules_give_the_same_result(number, gpu, seed):
    run_first_case(check_many_schedules, seed, gpu, schedules=4)


@pytest.mark.parametrize("kernel", [*KERNELS, "grid"])
def test_nans_of_any_payload_stay_in_their_rows(kernel, gpu, seed):
    run_first_case(check_nan_payloads, seed, gpu, kernel=kernel)


@pytest.mark.parametrize("case", pairwise(tuple(PRECISIONS), HANDOVERS, (True, False), (1, 2)), ids=str)
def test_waiting_for_a_missing_program_times_out(case, gpu, seed):
    check_timeout(random.Random(seed), gpu, case)


READ_LIMIT = r"ld\.global\.b64 limit, \[%rd\d+\];"
# Name -> pattern and replacement in a wait, pattern of the error.
TIME_OUT_FAULTS = {
    "gives up after twice the limit": (READ_LIMIT, r"\g<0> shl.b64 limit, limit, 1;", "after 2"),
    "gives up after half the limit": (READ_LIMIT, r"\g<0> shr.u64 limit, limit, 1;", "after 0"),
    "does not tell the other waits": (r"st\.relaxed\.gpu\.global\.b32 \[%rd\d+\], a;", "", "after 3"),
    "does not tell the host": (r"st\.relaxed\.sys\.global\.b32 \[limit\], a;", "", "no error was raised"),
}


@pytest.mark.parametrize("name", TIME_OUT_FAULTS)
def test_a_planted_fault_of_a_time_out_is_found(name, gpu, seed):
    pattern, replacement, error = TIME_OUT_FAULTS[name]
    planted_counts = []

    def plant(kernel: str, ptx: str) -> str:
        ptx, count = re.subn(pattern, replacement, ptx)
        planted_counts.append(count)
        return ptx

    gpu.change_ptx = plant
    with pytest.raises(AssertionError, match=error):
        check_timeout(random.Random(seed), gpu, ("fp32", "flag", True, 1))
    assert sum(planted_counts) == 1
