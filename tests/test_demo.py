"""The demo's model, bookkeeping and printed story, with random weights."""

import pathlib
import re
import sys

import numpy as np
import pytest
import torch

import triton_gru

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts"))

import demo
import g2p


@pytest.fixture
def model():
    """Return the demo's model with small sizes and random weights."""
    draw = np.random.default_rng(0)
    shapes = {"enc_emb": (29, 6), "dec_emb": (9, 6), "fc_w": (9, 5), "fc_b": (9,)}
    for prefix in ("enc", "dec"):
        shapes |= {
            f"{prefix}_w_ih": (15, 6),
            f"{prefix}_w_hh": (15, 5),
            f"{prefix}_b_ih": (15,),
            f"{prefix}_b_hh": (15,),
        }
    return g2p.Pronouncer({name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}).eval()


@pytest.fixture
def dictionary():
    """Return twelve words with made-up pronunciations."""
    words = "word", "gate", "cell", "unit", "step", "grid", "a", "ab", "abc", "bc", "ca", "abcdefghijklmnopqrstuvwxyz"
    return {word: [("AA1", "B", "CH", "D")[: 1 + len(word) % 4]] for word in words}


def assert_fits_a_screen(story: str) -> None:
    """Assert that the story has at most 38 lines of 100 characters, and no progress line."""
    lines = story.splitlines()
    assert len(lines) <= 38 and max(map(len, lines)) <= 100  # the installation prints two more lines
    assert "\r" not in story


@pytest.mark.parametrize("gcc", ["/usr/bin/gcc", None])
def test_story_without_a_gpu(gcc, model, dictionary, monkeypatch, capsys):
    monkeypatch.setattr(demo.shutil, "which", lambda name: gcc)
    demo.present(model, dictionary, 12, "cpu")
    story = capsys.readouterr().out
    assert_fits_a_screen(story)
    assert "no GPU: times below are nn.GRU's" in story and "Why nn.GRU? " in story
    assert story.count("  accelerate() -> nn.GRU        fp32            12                12 ") == 1
    executed = re.findall(r"  grid \+ step, executed on CPU  (\w+) ", story)
    assert executed == (["fp32", "tf32", "fp16", "bf16"] if gcc else [])
    meaning = " ".join(story.split("What it means: ")[1].split())
    assert (demo.EXECUTED in meaning, demo.NO_GCC in meaning) == (bool(gcc), not gcc)


def test_story_on_a_gpu(model, dictionary, device, launched, monkeypatch, capsys):
    monkeypatch.setattr(demo, "PASSES", 1)
    demo.present(model.to(device), dictionary, 12, device)
    story = capsys.readouterr().out
    assert_fits_a_screen(story)
    assert launched.scan_count
    assert "GPU: " in story and "no GPU" not in story
    assert re.findall(r"  accelerate\(\) -> .* (\w+) +12 +\d+ +\d+\n", story) == ["fp32", "tf32", "fp16", "bf16"]
    assert "of 12 words. words/s are the whole model's" in " ".join(story.split())


def test_shows_three_words_that_differ(capsys):
    words = [letter * 30 for letter in "abcde"]
    expected = demo.Pronounced("fp32", {word: (("AA1",) * 20, 0.1 * i) for i, word in enumerate(words)}, 0.0)
    other = demo.Pronounced("fp16", dict.fromkeys(words[1:], (("B",) * 20, 0.0)), 0.0)
    demo.report_disagreements([expected, other], expected)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(":")[0].split() for line in lines[1:]] == [[f"{0.1 * i:.4f}", words[i]] for i in (4, 3, 2)]
    assert max(map(len, lines)) <= 100
    with pytest.raises(AssertionError, match="4 words differ from those of nn.GRU"):
        demo.must_agree(other, expected)
    demo.must_agree(expected, expected)


def test_progress_takes_one_line_of_a_terminal(monkeypatch, capsys):
    demo.show_progress("1 of 2 words")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    demo.show_progress("1 of 2 words")
    demo.show_progress("2 of 2 words")
    demo.print_text("a row")
    assert capsys.readouterr().out == "\r\x1b[K1 of 2 words\r\x1b[K2 of 2 words\r\x1b[Ka row\n"


def test_model_gives_the_same_results_on_kernels(model, device, launched):
    model.to(device)
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    letters = g2p.encode(["word", "gate"], device)
    with torch.no_grad():
        phonemes, gaps = model(letters)
        assert phonemes.shape == gaps.shape == (2, g2p.MAX_PHONEMES)
        assert (gaps >= 0).all()
        triton_gru.accelerate(model)
        model.encoder.backend = model.decoder.backend = "block"
        kernels_phonemes, kernels_gaps = model(letters)
    assert launched.scan_count == 1 + g2p.MAX_PHONEMES
    assert torch.equal(kernels_phonemes, phonemes)
    torch.testing.assert_close(kernels_gaps, gaps, rtol=0, atol=1e-4)


def test_each_batch_has_words_of_one_length():
    words = ["a", "bb", "cc", "d", "eee", "ff"]
    groups = g2p.make_batches(words, 2)
    assert groups == [["a", "d"], ["bb", "cc"], ["ff"], ["eee"]]


def test_encoding_ends_with_the_end_mark():
    assert g2p.encode(["az"], "cpu").tolist() == [[3, 28, 2]]


def test_pronunciation_stops_at_the_end_mark():
    names = [*g2p.SPECIAL, "AA", "B"]
    assert g2p.name_phonemes([4, 5, g2p.END, 4], names) == ("AA", "B")
    assert g2p.name_phonemes([4, 5], names) == ("AA", "B")


@pytest.mark.parametrize(
    "source, target, distance",
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edit_distance(source, target, distance):
    assert g2p.edit_distance(tuple(source), tuple(target)) == distance
