"""The list of what is run first on a GPU names tests that there are."""

import pathlib

import pytest

from .gpu_first import FIRST


@pytest.mark.parametrize("beginning", [beginning for beginning, _ in FIRST])
def test_there_are_such_tests(beginning):
    file, _, name = beginning.partition("::")
    assert f"\ndef {name or 'test_'}" in (pathlib.Path(__file__).parent / file).read_text()
