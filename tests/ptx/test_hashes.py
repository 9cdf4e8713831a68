"""Tests of hashes.py: which changes of PTX alter a hash, and which launches are hashed."""

import pytest

from .hashes import CALL_OPTIONS, cases, compare, hash_launches, strip_debug_info

PTX = """\
// a comment
.version 8.7
    .loc 1 5 0 // grid.py:5
$L__tmp3:
    add.f32 %f1, %f2, %f3;   // more
    .file 1 "grid.py"
.section .debug_info { 1 }
"""


def test_line_numbers_and_comments_alter_no_hash():
    changed = PTX.replace("5", "6").replace("tmp3", "tmp4").replace("more", "less")
    assert strip_debug_info(PTX) == strip_debug_info(changed)


@pytest.mark.parametrize("old, new", [("%f3", "%f4"), ("8.7", "8.8"), ("add", "sub")])
def test_an_instruction_and_the_version_alter_the_hash(old, new):
    assert strip_debug_info(PTX) != strip_debug_info(PTX.replace(old, new))


def test_compare_returns_a_line_for_each_difference():
    before, after = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "3"}
    assert compare(before, after) == ["b differs", "c is gone", "d is new"]
    assert compare(before, before) == []


def test_every_kernel_is_hashed_with_all_options():
    assert {(kernel, str(options)) for _, kernel, *_, options in cases()} == {
        (kernel, str(options)) for kernel in ("block", "grid", "step") for options in CALL_OPTIONS
    }


def test_hashes_of_a_case_are_reproducible():
    """Check that each kernel has a hash of its own, too, and that a case that does not fit has none."""
    case = ("H200", "block", "fp16", 16, 1, {"hx": True})
    hashes = hash_launches(case)
    kernels = [key.rpartition(" ")[2] for key in hashes]
    assert kernels == ["input_projection", "block_scan"]
    assert len(set(hashes.values())) == 2 and hash_launches(case) == hashes
    too_large = ("H200", "block", "fp16", 2048, 1, {})
    assert hash_launches(too_large) == {}
