"""A trained GRU pronounces English words, before and after triton_gru.accelerate().

With a GPU: every precision, word for word against torch in fp32, phoneme error rate, words per second. Without
one: torch on the CPU, and on a few of the words the compiled kernels, executed on the CPU (tests/ptx, needs gcc).
"""

import argparse
import copy
import pathlib
import random
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the tests are not installed

import g2p
import torch

import triton_gru
from tests.ptx.device import emulating
from triton_gru.accuracy import PRECISIONS, set_precision
from triton_gru.plan.device import KNOWN

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--words", type=int, default=20_000 if GPU else 2_000, help="words of the dictionary to pronounce"
    )
    options = parser.parse_args()
    say(f"triton-gru {triton_gru.__version__}, torch {torch.__version__}")
    if GPU:
        say(f"GPU: {torch.cuda.get_device_name()}")
    else:
        say(
            "No GPU here: every time below is a CPU time of torch's own GRU, and says nothing about the kernels' speed."
        )
    dictionary = g2p.load_dictionary()
    names = g2p.phoneme_names(dictionary)
    words = sample(dictionary, options.words)
    model = g2p.load_model().to(DEVICE)
    say(f"model: {model.encoder}, {model.decoder}, trained; {len(words)} words of the dictionary it was trained on")

    set_precision("fp32")
    before, rate_before = pronounce_all(model, words, names, "torch.nn.GRU, fp32")
    errors = sum(min(g2p.edit_distance(said, true) for true in dictionary[w]) for w, (said, _) in before.items())
    length = sum(len(dictionary[w][0]) for w in words)
    say(f"  phoneme error rate {errors / length:.1%}")
    for word in words[:5]:
        say(f"  {word:14} {' '.join(before[word][0])}")

    triton_gru.accelerate(model)
    say("\nafter triton_gru.accelerate(model), the encoder's plan is")
    say(indented(str(plan(model))))
    after, rate_after = pronounce_all(model, words, names, "accelerated, fp32")
    must_agree(after, before)
    say(f"  {rate_before:.0f} words/s before, {rate_after:.0f} after")

    if GPU:
        for precision in ("tf32", "fp16", "bf16"):
            rounded = in_precision(model, precision)
            said, _ = pronounce_all(rounded, words, names, f"accelerated, {precision}, kernel {plan(rounded).kernel}")
            report_disagreements(said, before)
    elif shutil.which("gcc"):
        with emulating(KNOWN["H200"], seed=0):
            pronounce_few(model, [word for word in words if len(word) == len(words[0])][:6], names, before)
    else:
        say("\nthe kernels are left out: to execute them on the CPU needs gcc, which is missing")


def say(text: str) -> None:
    print(text, flush=True)


def sample(dictionary: dict, number: int) -> list[str]:
    return random.Random(0).sample(sorted(dictionary), min(number, len(dictionary)))


def indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def plan(model) -> triton_gru.Plan:
    return model.encoder.plan(model.letters(g2p.encode(["word"] * BATCH, DEVICE)))


def in_precision(model, name: str):
    """A copy of the fp32 model, so that no number is rounded twice."""
    return copy.deepcopy(model).to(set_precision(name))


def pronounce_all(model, words: list[str], names: list[str], title: str, timed: bool = True):
    """Each word's pronunciation with its smallest logit gap, and words per second, which are said if ``timed``."""
    groups = g2p.batches(words, BATCH)
    if timed:
        model(g2p.encode(groups[0], DEVICE))  # warm-up
    said = {}
    seconds = 0.0
    for group in groups:
        letters = g2p.encode(group, DEVICE)
        start = time.perf_counter()
        phonemes, gaps = (t.tolist() for t in model(letters))
        seconds += time.perf_counter() - start
        for word, row, gap in zip(group, phonemes, gaps):
            end = row.index(g2p.END) + 1 if g2p.END in row else len(row)
            said[word] = g2p.pronunciation(row, names), min(gap[:end])
        print(f"\r{title}: {len(said)}/{len(words)} words", end="", flush=True)
    rate = len(words) / seconds
    say(f", {rate:.0f} words/s" if timed else "")
    return said, rate


def disagreements(said: dict, expected: dict) -> list[str]:
    return [word for word, (phonemes, _) in said.items() if phonemes != expected[word][0]]


def must_agree(said: dict, expected: dict) -> None:
    different = disagreements(said, expected)
    assert not different, f"pronounced otherwise than torch does: {different}"
    say(f"  all {len(said)} words pronounced as torch.nn.GRU does in fp32, phoneme for phoneme")


def report_disagreements(said: dict, expected: dict) -> None:
    different = disagreements(said, expected)
    say(f"  {len(said) - len(different)} of {len(said)} words as torch.nn.GRU in fp32")
    for word in different:
        say(
            f"    {word}: {' '.join(said[word][0])}, in fp32 {' '.join(expected[word][0])}; the closest call in fp32 "
            f"was a logit gap of {expected[word][1]:.4f}"
        )


def pronounce_few(model, words: list[str], names: list[str], expected: dict) -> None:
    """Compare in every precision what an accelerated model says of a few words, by kernels that serve it on a GPU."""
    model.encoder.backend, model.decoder.backend = "grid", "step"
    say("\nthe kernels with the same weights, as compiled for an H200 and executed on the CPU:")
    for precision in PRECISIONS:
        rounded = in_precision(model, precision)
        say(f"  {rounded.encoder.plan(rounded.letters(g2p.encode(words, DEVICE))).config}")
        said, _ = pronounce_all(rounded, words, names, f"encoder on grid, decoder on step, {precision}", timed=False)
        must_agree(said, expected) if precision == "fp32" else report_disagreements(said, expected)


if __name__ == "__main__":
    with torch.no_grad():
        main()
