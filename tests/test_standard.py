"""The shapes that are tuned where nobody names any."""

import pytest

from triton_gru.plan.device import KNOWN_DEVICES
from triton_gru.plan.tables.lookup import _is_verdict_valid
from triton_gru.tuning.standard import standard_problems

from .planted import H200, T4


@pytest.mark.parametrize("device", KNOWN_DEVICES.values(), ids=lambda device: device.name)
def test_each_is_another_measurement(device):
    keys = [each.key() for each in standard_problems(device)]
    assert 60 <= len(keys) == len(set(keys)) <= 80


def test_any_beginning_is_useful():
    """The first twelve are what the library is made for, and decide long sequences with other inputs."""
    keys = [each.key() for each in standard_problems(H200)]
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


def test_what_no_kernel_serves_is_left_out():
    assert standard_problems(T4) == []
