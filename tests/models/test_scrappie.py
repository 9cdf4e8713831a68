"""Scrappie (Oxford Nanopore; MPL-2.0): DNA from the current through a pore, with GRUs of 96 units.

The GRUs have ``reset_after=False``. The network raw_r94 has two layers, each with a forward and a backward GRU.
"""

import platform

import numpy as np
import pytest

import triton_gru

from . import ROUNDING_NOISE, WRONG_VARIANT, compute_difference
from .scrappie import Scrappie, compile_scrappie

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="scrappie's C code uses SSE instructions")


@pytest.fixture(scope="module")
def scrappie(tmp_path_factory) -> Scrappie:
    return compile_scrappie(tmp_path_factory.mktemp("scrappie"))


@pytest.fixture(scope="module")
def squiggle() -> np.ndarray:
    """Return a signal like the current: a level for each of 100 bases, 5 to 13 samples long, and noise."""
    generator = np.random.default_rng(0)
    levels = np.repeat(generator.standard_normal(100), generator.integers(5, 14, 100))
    return (levels + 0.15 * generator.standard_normal(levels.size)).astype(np.float32)


def keep_both(forward: triton_gru.GRU, backward: triton_gru.GRU) -> list[triton_gru.GRU]:
    """Return the GRUs of a layer: a forward GRU, and a backward one with ``reverse=True``."""
    backward.reverse = True
    return [forward, backward]


def merge_both(forward: triton_gru.GRU, backward: triton_gru.GRU) -> list[triton_gru.GRU]:
    """Return the GRUs of a layer: one bidirectional GRU with the weights of both."""
    merged = triton_gru.GRU(forward.input_size, forward.hidden_size, bidirectional=True, reset_after=False).eval()
    merged.load_state_dict(
        forward.state_dict() | {f"{name}_reverse": weight for name, weight in backward.state_dict().items()}
    )
    return [merged]


def make_layers(scrappie: Scrappie, make_layer, device: str, backend: str, reset_after: bool = False):
    """Return the GRUs of the network's two layers. ``make_layer`` is `keep_both` or `merge_both`."""
    layers = [make_layer(scrappie.gru(f"F{layer}"), scrappie.gru(f"B{layer}")) for layer in (1, 2)]
    for gru in (gru for layer in layers for gru in layer):
        gru.to(device)
        gru.backend, gru.reset_after = backend, reset_after
    return layers


@pytest.mark.parametrize("make_layer", [keep_both, merge_both])
def test_network_agrees_with_scrappie_without_kernels(scrappie, squiggle, make_layer):
    """Check that the network disagrees with the wrong ``reset_after``, too."""
    expected = scrappie.posterior(squiggle)
    assert expected.max(1).mean() > 0.5, "nothing is recognized"
    layers = make_layers(scrappie, make_layer, "cpu", "reference")
    assert compute_difference(scrappie.posterior_with(layers, squiggle), expected) <= ROUNDING_NOISE
    layers = make_layers(scrappie, make_layer, "cpu", "reference", reset_after=True)
    assert compute_difference(scrappie.posterior_with(layers, squiggle), expected) > WRONG_VARIANT


@pytest.mark.parametrize("make_layer", [keep_both, merge_both])
def test_network_agrees_with_scrappie_on_kernels(scrappie, squiggle, make_layer, device, launched):
    if device == "cpu":
        squiggle = squiggle[:30]  # six steps
    actual = scrappie.posterior_with(make_layers(scrappie, make_layer, device, "block"), squiggle)
    assert launched.has_only("block")
    assert compute_difference(actual, scrappie.posterior(squiggle)) <= ROUNDING_NOISE
