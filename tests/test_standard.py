"""Standard shapes, which `triton-gru tune` tunes if no shape is given."""

import pytest

from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.tables.lookup import _is_verdict_valid
from triton_gru.tuning.standard import standard_problems

from .planted import H200, T4


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
def test_standard_problems_have_different_keys(device):
    keys = [problem.key() for problem in standard_problems(device)]
    assert 60 <= len(keys) == len(set(keys)) <= 80


def test_first_problems_are_the_most_useful():
    """The first twelve are the main use of the package. They also decide long sequences with other input sizes."""
    keys = [problem.key() for problem in standard_problems(H200)]
    assert {(key.dtype, key.precision) for key in keys[:2]} == {("float16", "ieee"), ("float32", "tf32")}
    assert {(key.hidden_size, key.batch, key.dtype) for key in keys[:12]} == {
        (hidden, batch, dtype) for hidden in (256, 512, 1024) for batch in (1, 16) for dtype in ("float16", "float32")
    }
    assert {key.steps for key in keys[:12]} == {64} and {key.steps for key in keys[12:24]} == {1}
    for key in keys[:12]:
        assert _is_verdict_valid(key, key.__class__(**vars(key) | {"steps": 2000, "input_size": key.hidden_size // 4}))
    assert {key.dtype for key in keys} == {"float16", "float32", "bfloat16"}
    assert {key.layout for key in keys} == {"dense", "packed"} and {key.directions for key in keys} == {1, 2}
    assert {128, 2048} < {key.hidden_size for key in keys}


def test_gpu_without_kernels_has_no_standard_problems():
    assert standard_problems(T4) == []
