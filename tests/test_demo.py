"""The demo's model and bookkeeping, on made-up weights."""

import pathlib
import sys

import numpy as np
import pytest
import torch

import triton_gru

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts"))

import g2p


@pytest.fixture
def model():
    draw = np.random.default_rng(0)
    shapes = {"enc_emb": (29, 6), "dec_emb": (9, 6), "fc_w": (9, 5), "fc_b": (9,)}
    for part in ("enc", "dec"):
        shapes |= {f"{part}_w_ih": (15, 6), f"{part}_w_hh": (15, 5), f"{part}_b_ih": (15,), f"{part}_b_hh": (15,)}
    return g2p.Pronouncer({name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}).eval()


def test_the_model_says_the_same_on_the_kernels(model, device, launched):
    model.to(device)
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    letters = g2p.encode(["word", "gate"], device)
    with torch.no_grad():
        phonemes, gaps = model(letters)
        assert phonemes.shape == gaps.shape == (2, g2p.LONGEST)
        assert (gaps >= 0).all()
        triton_gru.accelerate(model)
        model.encoder.backend = model.decoder.backend = "block"
        kernels_phonemes, kernels_gaps = model(letters)
    assert launched.scans == 1 + g2p.LONGEST
    assert torch.equal(kernels_phonemes, phonemes)
    torch.testing.assert_close(kernels_gaps, gaps, rtol=0, atol=1e-4)


def test_batches_hold_one_length_each():
    words = ["a", "bb", "cc", "d", "eee", "ff"]
    groups = g2p.batches(words, 2)
    assert groups == [["a", "d"], ["bb", "cc"], ["ff"], ["eee"]]


def test_encoding_ends_with_the_end_mark():
    assert g2p.encode(["az"], "cpu").tolist() == [[3, 28, 2]]


def test_pronunciation_stops_at_the_end_mark():
    names = [*g2p.SPECIAL, "AA", "B"]
    assert g2p.pronunciation([4, 5, g2p.END, 4], names) == ("AA", "B")
    assert g2p.pronunciation([4, 5], names) == ("AA", "B")


@pytest.mark.parametrize(
    "a, b, distance",
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edit_distance(a, b, distance):
    assert g2p.edit_distance(tuple(a), tuple(b)) == distance
