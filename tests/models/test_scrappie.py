"""Scrappie (Oxford Nanopore; MPL-2.0): DNA from the current through a pore, with GRUs of 96 units.

They have ``reset_after=False``. The network raw_r94 has two layers, each with a forward and a backward GRU.
"""

import platform

import numpy as np
import pytest

import triton_gru

from . import NOISE, WRONG, difference
from .scrappie import Scrappie, compile_scrappie

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="scrappie's C code uses SSE instructions")


@pytest.fixture(scope="module")
def scrappie(tmp_path_factory) -> Scrappie:
    return compile_scrappie(tmp_path_factory.mktemp("scrappie"))


@pytest.fixture(scope="module")
def squiggle() -> np.ndarray:
    """Return a signal like the current: a level for each of 100 bases, held for some samples, and noise."""
    generator = np.random.default_rng(0)
    levels = np.repeat(generator.standard_normal(100), generator.integers(5, 14, 100))
    return (levels + 0.15 * generator.standard_normal(levels.size)).astype(np.float32)


def apart(forward: triton_gru.GRU, backward: triton_gru.GRU) -> list[triton_gru.GRU]:
    backward.reverse = True
    return [forward, backward]


def together(forward: triton_gru.GRU, backward: triton_gru.GRU) -> list[triton_gru.GRU]:
    both = triton_gru.GRU(forward.input_size, forward.hidden_size, bidirectional=True, reset_after=False).eval()
    both.load_state_dict(
        forward.state_dict() | {f"{name}_reverse": weight for name, weight in backward.state_dict().items()}
    )
    return [both]


def converted(scrappie: Scrappie, pair, device: str, backend: str, reset_after: bool = False):
    layers = [pair(scrappie.gru(f"F{layer}"), scrappie.gru(f"B{layer}")) for layer in (1, 2)]
    for gru in (gru for layer in layers for gru in layer):
        gru.to(device)
        gru.backend, gru.reset_after = backend, reset_after
    return layers


@pytest.mark.parametrize("pair", [apart, together])
def test_network_agrees_with_scrappie_without_kernels(scrappie, squiggle, pair):
    expected = scrappie.posterior(squiggle)
    assert expected.max(1).mean() > 0.5, "nothing is recognized"
    grus = converted(scrappie, pair, "cpu", "reference")
    assert difference(scrappie.posterior_with(grus, squiggle), expected) <= NOISE
    grus = converted(scrappie, pair, "cpu", "reference", reset_after=True)
    assert difference(scrappie.posterior_with(grus, squiggle), expected) > WRONG


@pytest.mark.parametrize("pair", [apart, together])
def test_network_agrees_with_scrappie_on_kernels(scrappie, squiggle, pair, device, launched):
    if device == "cpu":
        squiggle = squiggle[:30]  # six steps
    actual = scrappie.posterior_with(converted(scrappie, pair, device, "block"), squiggle)
    assert launched.has_only("block")
    assert difference(actual, scrappie.posterior(squiggle)) <= NOISE
