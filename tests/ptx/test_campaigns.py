"""A few cases of each campaign, new in every run: random calls, schedules, NaN payloads, time-outs."""

import random

import pytest

from triton_gru.accuracy import PRECISIONS
from triton_gru.plan.config import HANDOVERS
from triton_gru.plan.planner import KERNELS

from ..pairwise import pairwise
from .campaigns import Skipped, matrix, payloads, stress, timeouts


def run_first_case(campaign, seed: int, *args, **options) -> None:
    """Run the first case of a campaign that is not skipped."""
    draw = random.Random(seed)
    for _ in range(100):
        try:
            print(campaign(draw, *args, **options))
            return
        except Skipped:
            continue
    raise AssertionError("every case was skipped")


@pytest.mark.parametrize("gpu", ["H200", "A100", "RTX 5090"], indirect=True)
@pytest.mark.parametrize("case", range(2))
def test_random_calls(case, gpu, seed):
    run_first_case(matrix, seed, gpu)


@pytest.mark.parametrize("case", range(4))
def test_every_schedule_gives_the_same_result(case, gpu, seed):
    run_first_case(stress, seed, gpu, schedules=4)


@pytest.mark.parametrize("kernel", [*KERNELS, "grid"])
def test_nans_of_any_payload_stay_in_their_rows(kernel, gpu, seed):
    run_first_case(payloads, seed, gpu, kernel=kernel)


@pytest.mark.parametrize("case", pairwise(tuple(PRECISIONS), HANDOVERS, (True, False), (1, 2)), ids=str)
def test_waiting_for_a_missing_program_times_out(case, gpu, seed):
    timeouts(random.Random(seed), gpu, case)
