"""Tests that run a few cases of each campaign. The cases are drawn again in every run, except those of time-outs."""

import random

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
