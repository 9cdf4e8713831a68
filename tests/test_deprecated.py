"""Old names work for one version, and warn."""

import dataclasses

import pytest
import torch

import triton_gru
from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.planner import choose
from triton_gru.tuning.progress import Progress
from triton_gru.tuning.tuner import Tuned

PROBLEM = triton_gru.Problem(9, 4, 64, 64, 1, False, torch.float16, "ieee", reset_after=True)
PLAN = choose(PROBLEM, KNOWN_DEVICES["H200"])
# Old attribute name -> (an object that has it, the new name).
OLD_NAMES = {
    "obstacle": (PROBLEM, "unsupported_reason"),
    "cublas_obstacle": (PROBLEM, "cublas_unsupported_reason"),
    "reason_against_torch": (PROBLEM, "nn_gru_unsupported_reason"),
    "ieee": (PROBLEM, "is_ieee"),
    "single_step": (PROBLEM, "is_single_step"),
    "on": (PROBLEM, "shape_on"),
    "rejected": (PLAN, "rejection_reasons"),
    "others": (PLAN, "alternatives"),
    "tuned": (PLAN, "is_tuned"),
    "kept": (tuned := Tuned(PROBLEM, None), "table_path"),
    "known": (tuned, "is_from_table"),
    "left": (progress := Progress(1, 2, PROBLEM.key(), "compiling", 0.5, 7.0), "time_left"),
    "share": (progress, "fraction_done"),
}


@pytest.mark.parametrize("old_name", OLD_NAMES)
def test_old_attribute_names_warn(old_name):
    owner, new_name = OLD_NAMES[old_name]
    with pytest.warns(
        DeprecationWarning, match=f"{old_name} of triton_gru's {type(owner).__name__} is named {new_name} now"
    ):
        assert getattr(owner, old_name) == getattr(owner, new_name)


def test_old_keywords_of_fields_warn():
    with pytest.warns(DeprecationWarning, match="named unsupported_reason"):
        assert dataclasses.replace(PROBLEM, obstacle="a hook").unsupported_reason == "a hook"
    with pytest.warns(DeprecationWarning, match="named is_tuned"):
        assert dataclasses.replace(PLAN, tuned=True).is_tuned


def test_old_keywords_of_tune_warn():
    with pytest.warns(DeprecationWarning) as warned, pytest.raises(RuntimeError, match="no kernel"):
        triton_gru.tune([PROBLEM], device="cpu", anew=True, say=print)
    assert {str(warning.message).split()[0] for warning in warned} == {"anew", "say"}


def test_both_names_of_an_argument_are_refused():
    with pytest.raises(TypeError, match=r"^tune\(\) got 'remeasure' and 'anew', its old name: pass only 'remeasure'$"):
        triton_gru.tune([PROBLEM], device="cpu", anew=True, remeasure=False)
    fields = dict(list(dataclasses.asdict(PROBLEM).items())[:8])
    with pytest.raises(TypeError, match=r"^Problem\(\) got 'unsupported_reason' and 'obstacle'"):
        triton_gru.Problem(**fields, reset_after=True, unsupported_reason="a hook", obstacle="")
