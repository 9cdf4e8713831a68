"""The tests listed in tests/gpu_first.py exist."""

import pathlib

import pytest

from .gpu_first import FIRST


@pytest.mark.parametrize("prefix", [prefix for prefix, _ in FIRST])
def test_first_tests_exist(prefix):
    file, _, name = prefix.partition("::")
    assert f"\ndef {name or 'test_'}" in (pathlib.Path(__file__).parent / file).read_text()
