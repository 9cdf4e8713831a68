"""A trained GRU pronounces English words, before and after triton_gru.accelerate().

With a GPU: every precision, word for word against nn.GRU in fp32, and words per second. Without one: nn.GRU on the
CPU, and on a few of the words the compiled kernels, executed on the CPU (tests/ptx, needs gcc).
"""

import argparse
import copy
import pathlib
import random
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the tests are not installed

import g2p
import torch

import triton_gru
from tests.ptx.device import emulate_gpu
from triton_gru.accuracy import PRECISIONS, set_precision
from triton_gru.plan.config import report_name
from triton_gru.plan.device import KNOWN_DEVICES, find_device

BATCH = 64  # words
PASSES = 3  # over all words: the fastest counts
FEW = 6  # words that the kernels pronounce on a CPU
SHOWN = 4  # words that are spelt out
SHOWN_DIFFERENT = 3  # words that are shown of those pronounced otherwise
COLUMNS = 100  # of the screen
CLEAR = "\r\x1b[K"  # returns to the left edge of a terminal and erases the line
TABLE = "  {:<30}{:<11}{:>7}{:>18}{:>10}"
IDLE = "Without a GPU the call stays nn.GRU, so the difference between both rates is noise."
EXECUTED = (
    "The last rows are the kernels as compiled for an H200, executed instruction by instruction on this CPU: they show "
    "that the results are right, and nothing about speed."
)
NO_GCC = "Executing the kernels on this CPU needs gcc, which is missing."
WHOLE = f"words/s are the whole model's, which calls its decoder {g2p.MAX_PHONEMES} times a batch."


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = 20_000 if device == "cuda" else 2_000
    parser.add_argument("--words", type=int, default=number, help="words of the dictionary to pronounce")
    options = parser.parse_args()
    if device == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other on a busy CPU take up to ten times as long
    tell(g2p.load_model().to(device), g2p.load_dictionary(), options.words, device)


@torch.no_grad()
def tell(model: g2p.Pronouncer, dictionary: dict, number: int, device: str) -> None:
    """Tell the whole story of a model on ``device``: spelt words, a table of who computes, and what it means."""
    gpu = find_device(torch.device(device))
    where = f"GPU: {gpu.name}" if gpu else "no GPU: times below are nn.GRU's on this CPU, not the kernels'"
    say(wrapped(f"triton-gru {triton_gru.__version__}, torch {torch.__version__}, {where}.") + "\n")
    demo = Demo(model, g2p.phoneme_names(dictionary), sample(dictionary, number), device)
    demo.spell()
    say("\ntriton_gru.accelerate(model) replaces nn.GRU and nn.GRUCell. Are the phonemes still the same?\n")
    say(TABLE.format("who computes", "precision", "words", "same as nn.GRU", "words/s"))

    before = demo.pronounce("nn.GRU (before)", "fp32")
    triton_gru.accelerate(model)
    after = [demo.pronounce(f"accelerate() -> {demo.kernels()}", "fp32", before)]
    must_agree(after[0], before)
    why = demo.why()
    if gpu:
        for precision in list(PRECISIONS)[1:]:
            after.append(demo.pronounce(f"accelerate() -> {demo.kernels(precision)}", precision, before))
    elif shutil.which("gcc"):
        with emulate_gpu(KNOWN_DEVICES["H200"], seed=0):
            after += demo.pronounce_few(before)
        must_agree(after[1], before)
    report_disagreements(after, before)
    say("\n" + wrapped(why))
    errors = f"The model itself errs in {error_rate(before.said, dictionary):.1%} of its dictionary's phonemes."
    say(wrapped(f"{meaning(after, before, bool(gpu))} {errors}"))
    say("Next: .venv/bin/triton-gru info; README.md; scripts/examples/README.md.")


@dataclass
class Pronounced:
    """A pronunciation of words in a precision: each one's phonemes and smallest gap between the best two logits."""

    precision: str
    said: dict[str, tuple[tuple[str, ...], float]]
    words_per_second: float

    def disagreements(self, expected: "Pronounced") -> list[str]:
        return [word for word, (phonemes, _) in self.said.items() if phonemes != expected.said[word][0]]


class Demo:
    """A model and the words that it pronounces, with a row of the table for each time that it does."""

    def __init__(self, model: g2p.Pronouncer, names: list[str], words: list[str], device: str):
        self.model, self.names, self.words, self.device = model, names, words, device

    def spell(self) -> None:
        hidden = self.model.encoder.hidden_size
        say(f"A trained model, H = {hidden}: an nn.GRU reads the letters of a word, an nn.GRUCell writes phonemes.")
        set_precision("fp32")
        for word in self.words[:SHOWN]:
            said, _ = pronounce_batch(self.model, [word], self.names, self.device)
            say(f"  {word:14} {' '.join(said[word][0])}"[:COLUMNS])

    def kernels(self, precision: str = "fp32") -> str:
        """Return who serves the encoder and who serves the decoder: ``"grid + step"``."""
        served = dict.fromkeys(plan.kernel for plan in plans(in_precision(self.model, precision), self.device))
        return " + ".join(map(report_name, served))

    def why(self) -> str:
        """Return why the encoder is served as it is."""
        plan = plans(in_precision(self.model, "fp32"), self.device)[0]
        reason = plan.reason if plan.kernel != "torch" or not plan.rejection_reasons else plan.rejection_reasons[0][1]
        return f"Why {report_name(plan.kernel)}? model.encoder.plan(x) says: {reason}."

    def pronounce(self, who: str, precision: str, expected: Pronounced | None = None) -> Pronounced:
        """Pronounce all words, time it, and print a row of the table."""
        model, groups = in_precision(self.model, precision), g2p.batches(self.words, BATCH)
        passes = []
        for number in range(PASSES):
            said, seconds = {}, 0.0
            for group in groups:
                of_group, took = pronounce_batch(model, group, self.names, self.device)
                said |= of_group
                seconds += took
                words = number * len(self.words) + len(said)
                show_progress(f"  {who}, {precision}: {words} of {PASSES * len(self.words)} words")
            passes.append(seconds)
        done = Pronounced(precision, said, len(said) / min(passes))
        say_row(who, done, expected, f"{done.words_per_second:.0f}")
        return done

    def pronounce_few(self, expected: Pronounced) -> list[Pronounced]:
        """Pronounce a few words of one length in every precision, by kernels that serve the model on a GPU."""
        words = [word for word in self.words if len(word) == len(self.words[0])][:FEW]
        self.model.encoder.backend, self.model.decoder.backend = "grid", "step"
        done = []
        for precision in PRECISIONS:
            who = f"{self.kernels(precision)}, executed on CPU"
            show_progress(f"  {who}, {precision}: {len(words)} words, some seconds")
            said, _ = pronounce_batch(in_precision(self.model, precision), words, self.names, self.device)
            done.append(Pronounced(precision, said, 0.0))
            say_row(who, done[-1], expected, "not timed")
        return done


def pronounce_batch(model, words: list[str], names: list[str], device: str) -> tuple[dict, float]:
    """Return of words of one length the phonemes and the smallest logit gap, and the seconds that the model took."""
    letters, start = g2p.encode(words, device), time.perf_counter()
    results = [t.tolist() for t in model(letters)]
    seconds, said = time.perf_counter() - start, {}
    for word, row, gap in zip(words, *results):
        end = row.index(g2p.END) + 1 if g2p.END in row else len(row)
        said[word] = g2p.pronunciation(row, names), min(gap[:end])
    return said, seconds


def plans(model, device: str) -> list[triton_gru.Plan]:
    """Return the plans of the encoder and of the decoder for a batch of words."""
    letters = model.letters(g2p.encode(["word"] * BATCH, device))
    return [model.encoder.plan(letters), model.decoder.plan(letters[:, 0])]


def in_precision(model, name: str):
    """Return a copy of the fp32 model, so that no number is rounded twice."""
    return copy.deepcopy(model).to(set_precision(name))


def must_agree(done: Pronounced, expected: Pronounced) -> None:
    different = done.disagreements(expected)
    assert not different, f"{len(different)} words pronounced otherwise than nn.GRU does, such as {different[:5]}"


def report_disagreements(done: list[Pronounced], expected: Pronounced) -> None:
    """Print a few of the words that are pronounced otherwise, first those where nn.GRU was the surest."""
    different = [(each, word) for each in done for word in each.disagreements(expected)]
    different.sort(key=lambda found: -expected.said[found[1]][1])
    if different:
        say("\nWords that differ, after the smallest gap between the two best logits of nn.GRU in the word:")
    for each, word in different[:SHOWN_DIFFERENT]:
        phonemes, gap = expected.said[word]
        say(f"  {gap:.4f}  {word}: {' '.join(phonemes)}; in {each.precision} {' '.join(each.said[word][0])}"[:COLUMNS])


def meaning(after: list[Pronounced], before: Pronounced, has_gpu: bool) -> str:
    text = "What it means: in fp32 accelerate() changed no phoneme. "
    if has_gpu:
        most = max(len(each.disagreements(before)) for each in after)
        return f"{text}In a lower precision it changed at most {most} of {len(before.said)} words. {WHOLE}"
    return f"{text}{IDLE} {EXECUTED if len(after) > 1 else NO_GCC}"


def error_rate(said: dict, dictionary: dict) -> float:
    """Return the share of the dictionary's phonemes that are inserted, left out or exchanged."""
    errors = sum(min(g2p.edit_distance(ours, true) for true in dictionary[word]) for word, (ours, _) in said.items())
    return errors / sum(len(dictionary[word][0]) for word in said)


def sample(dictionary: dict, number: int) -> list[str]:
    return random.Random(0).sample(sorted(dictionary), min(number, len(dictionary)))


def say_row(who: str, done: Pronounced, expected: Pronounced | None, rate: str) -> None:
    same = len(done.said) - len(done.disagreements(expected)) if expected else "-"
    say(TABLE.format(who, done.precision, len(done.said), same, rate).rstrip())


def say(text: str) -> None:
    """Print a text, in place of the progress on a terminal."""
    print(CLEAR + text if sys.stdout.isatty() else text, flush=True)


def show_progress(text: str) -> None:
    """Print a line to be overwritten. Where it cannot be, the rows of the table are progress enough."""
    if sys.stdout.isatty():
        print(CLEAR + text, end="", flush=True)


def wrapped(text: str) -> str:
    return textwrap.fill(text, COLUMNS)


if __name__ == "__main__":
    main()
