"""What counts as a change of PTX, and which launches are hashed."""

import pytest

from .hashes import FORMS, cases, compare, hash_launches, meaning

PTX = """\
// a comment
.version 8.7
    .loc 1 5 0 // grid.py:5
$L__tmp3:
    add.f32 %f1, %f2, %f3;   // more
    .file 1 "grid.py"
.section .debug_info { 1 }
"""


def test_lines_of_source_and_comments_mean_nothing():
    assert meaning(PTX) == meaning(PTX.replace("5", "6").replace("tmp3", "tmp4").replace("more", "less"))


@pytest.mark.parametrize("old, new", [("%f3", "%f4"), ("8.7", "8.8"), ("add", "sub")])
def test_instructions_count(old, new):
    assert meaning(PTX) != meaning(PTX.replace(old, new))


def test_each_difference_is_a_line():
    before, after = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "3"}
    assert compare(before, after) == ["b differs", "c is gone", "d is new"]
    assert compare(before, before) == []


def test_every_kernel_is_hashed_in_every_form():
    assert {(kernel, str(form)) for _, kernel, *_, form in cases()} == {
        (kernel, str(form)) for kernel in ("block", "grid", "step") for form in FORMS
    }


def test_launches_of_a_case_are_hashed_the_same_each_time():
    case = ("H200", "block", "fp16", 16, 1, {"hx": True})
    found = hash_launches(case)
    assert [key.rpartition(" ")[2] for key in found] == ["input_projection", "block_scan"]
    assert len(set(found.values())) == 2 and hash_launches(case) == found
    assert hash_launches(("H200", "block", "fp16", 2048, 1, {})) == {}
