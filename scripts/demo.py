"""Lets a trained GRU pronounce English words, before and after triton_gru.accelerate().

With a GPU, it compares every precision word for word with nn.GRU in fp32, and prints words per second. Without a GPU,
it times nn.GRU on the CPU, and executes the compiled kernels on the CPU for a few words (tests/ptx, needs gcc).
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
PASSES = 3  # over all words; the fastest one counts
FEW = 6  # words that the kernels pronounce on a CPU
SHOWN = 4  # words whose phonemes are printed first
SHOWN_DIFFERENT = 3  # differing words that are printed
COLUMNS = 100  # of the screen
CLEAR = "\r\x1b[K"  # returns to the left edge of a terminal and erases the line
TABLE = "  {:<30}{:<11}{:>7}{:>18}{:>10}"
IDLE = "Without a GPU nn.GRU serves the calls in both rows, so the difference between their rates is noise."
EXECUTED = (
    "The last rows are of the kernels compiled for an H200, executed instruction by instruction on this CPU: they show "
    "that the results are right, and nothing about speed."
)
NO_GCC = "Executing the kernels on this CPU needs gcc, which is missing."
WHOLE = f"words/s are the whole model's, which calls its decoder {g2p.MAX_PHONEMES} times for each batch."


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = 20_000 if device == "cuda" else 2_000
    parser.add_argument("--words", type=int, default=count, help=f"number of words to pronounce (default: {count})")
    options = parser.parse_args()
    if device == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other on a busy CPU take up to ten times as long
    present(g2p.load_model().to(device), g2p.load_dictionary(), options.words, device)


@torch.no_grad()
def present(model: g2p.Pronouncer, dictionary: dict, count: int, device: str) -> None:
    """Print the demo of a model on ``device``: some words, a table of implementations, and what the numbers mean."""
    gpu = find_device(torch.device(device))
    machine = f"GPU: {gpu.name}" if gpu else "no GPU: times below are nn.GRU's on this CPU, not the kernels'"
    print_text(wrap(f"triton-gru {triton_gru.__version__}, torch {torch.__version__}, {machine}.") + "\n")
    demo = Demo(model, g2p.phoneme_names(dictionary), sample(dictionary, count), device)
    demo.print_examples()
    print_text("\ntriton_gru.accelerate(model) replaces nn.GRU and nn.GRUCell. Are the phonemes still the same?\n")
    print_text(TABLE.format("implementation", "precision", "words", "same as nn.GRU", "words/s"))

    before = demo.pronounce("nn.GRU (before)", "fp32")
    triton_gru.accelerate(model)
    after = [demo.pronounce(f"accelerate() -> {demo.kernels()}", "fp32", before)]
    must_agree(after[0], before)
    reason = demo.explain_choice()
    if gpu:
        for precision in list(PRECISIONS)[1:]:
            after.append(demo.pronounce(f"accelerate() -> {demo.kernels(precision)}", precision, before))
    elif shutil.which("gcc"):
        with emulate_gpu(KNOWN_DEVICES["H200"], seed=0):
            after += demo.pronounce_few(before)
        must_agree(after[1], before)
    report_disagreements(after, before)
    print_text("\n" + wrap(reason))
    error = error_rate(before.pronunciations, dictionary)
    errors = f"The model itself is wrong in {error:.1%} of its dictionary's phonemes."
    print_text(wrap(f"{explain_numbers(after, before, bool(gpu))} {errors}"))
    print_text("Next: .venv/bin/triton-gru info; README.md; scripts/examples/README.md.")


@dataclass
class Pronounced:
    """The pronunciations of words in a precision.

    Attributes:
        pronunciations: word -> its phonemes, and the smallest gap between the two best logits of a phoneme.
    """

    precision: str
    pronunciations: dict[str, tuple[tuple[str, ...], float]]
    words_per_second: float

    def disagreements(self, expected: "Pronounced") -> list[str]:
        """Return the words whose phonemes differ from those in ``expected``."""
        return [
            word for word, (phonemes, _) in self.pronunciations.items() if phonemes != expected.pronunciations[word][0]
        ]


class Demo:
    """A model and the words that it pronounces. Each time it pronounces them, it prints a row of the table."""

    def __init__(self, model: g2p.Pronouncer, names: list[str], words: list[str], device: str):
        self.model, self.names, self.words, self.device = model, names, words, device

    def print_examples(self) -> None:
        hidden = self.model.encoder.hidden_size
        print_text(
            f"A trained model, H = {hidden}: an nn.GRU reads the letters of a word, an nn.GRUCell writes phonemes."
        )
        set_precision("fp32")
        for word in self.words[:SHOWN]:
            pronunciations, _ = pronounce_batch(self.model, [word], self.names, self.device)
            print_text(f"  {word:14} {' '.join(pronunciations[word][0])}"[:COLUMNS])

    def kernels(self, precision: str = "fp32") -> str:
        """Return the implementations of the encoder and of the decoder, such as ``"grid + step"``."""
        kernels = dict.fromkeys(plan.kernel for plan in make_plans(in_precision(self.model, precision), self.device))
        return " + ".join(map(report_name, kernels))

    def explain_choice(self) -> str:
        """Return why the plan of the encoder chose its implementation."""
        plan = make_plans(in_precision(self.model, "fp32"), self.device)[0]
        reason = plan.reason if plan.kernel != "torch" or not plan.rejection_reasons else plan.rejection_reasons[0][1]
        return f"Why {report_name(plan.kernel)}? model.encoder.plan(x) says: {reason}."

    def pronounce(self, name: str, precision: str, expected: Pronounced | None = None) -> Pronounced:
        """Pronounce and time all words, and print a row of the table."""
        model, groups = in_precision(self.model, precision), g2p.batches(self.words, BATCH)
        passes = []
        for number in range(PASSES):
            pronunciations, seconds = {}, 0.0
            for group in groups:
                group_pronunciations, group_seconds = pronounce_batch(model, group, self.names, self.device)
                pronunciations |= group_pronunciations
                seconds += group_seconds
                words = number * len(self.words) + len(pronunciations)
                show_progress(f"  {name}, {precision}: {words} of {PASSES * len(self.words)} words")
            passes.append(seconds)
        result = Pronounced(precision, pronunciations, len(pronunciations) / min(passes))
        print_row(name, result, expected, f"{result.words_per_second:.0f}")
        return result

    def pronounce_few(self, expected: Pronounced) -> list[Pronounced]:
        """Pronounce a few words of one length in every precision, by the kernels that serve the model on a GPU."""
        words = [word for word in self.words if len(word) == len(self.words[0])][:FEW]
        self.model.encoder.backend, self.model.decoder.backend = "grid", "step"
        results = []
        for precision in PRECISIONS:
            name = f"{self.kernels(precision)}, executed on CPU"
            show_progress(f"  {name}, {precision}: {len(words)} words, some seconds")
            pronunciations, _ = pronounce_batch(in_precision(self.model, precision), words, self.names, self.device)
            results.append(Pronounced(precision, pronunciations, 0.0))
            print_row(name, results[-1], expected, "not timed")
        return results


def pronounce_batch(model, words: list[str], names: list[str], device: str) -> tuple[dict, float]:
    """Return the pronunciations of words of one length, as in `Pronounced`, and the seconds that the model took."""
    letters, start = g2p.encode(words, device), time.perf_counter()
    results = [result.tolist() for result in model(letters)]
    seconds, pronunciations = time.perf_counter() - start, {}
    for word, row, gap in zip(words, *results):
        end = row.index(g2p.END) + 1 if g2p.END in row else len(row)
        pronunciations[word] = g2p.pronunciation(row, names), min(gap[:end])
    return pronunciations, seconds


def make_plans(model, device: str) -> list[triton_gru.Plan]:
    """Return the plans of the encoder and of the decoder for a batch of words."""
    letters = model.letters(g2p.encode(["word"] * BATCH, device))
    return [model.encoder.plan(letters), model.decoder.plan(letters[:, 0])]


def in_precision(model, name: str):
    """Set a precision and return a copy of the fp32 model in it. Copies of copies would round numbers twice."""
    return copy.deepcopy(model).to(set_precision(name))


def must_agree(result: Pronounced, expected: Pronounced) -> None:
    different = result.disagreements(expected)
    assert not different, f"{len(different)} words differ from those of nn.GRU, such as {different[:5]}"


def report_disagreements(results: list[Pronounced], expected: Pronounced) -> None:
    """Print a few of the words that differ, first those with the largest logit gap of nn.GRU."""
    different = [(result, word) for result in results for word in result.disagreements(expected)]
    different.sort(key=lambda pair: -expected.pronunciations[pair[1]][1])
    if different:
        print_text("\nWords that differ, each after nn.GRU's smallest gap between the two best logits of a phoneme:")
    for result, word in different[:SHOWN_DIFFERENT]:
        phonemes, gap = expected.pronunciations[word]
        changed = " ".join(result.pronunciations[word][0])
        print_text(f"  {gap:.4f}  {word}: {' '.join(phonemes)}; in {result.precision} {changed}"[:COLUMNS])


def explain_numbers(after: list[Pronounced], before: Pronounced, has_gpu: bool) -> str:
    text = "What it means: in fp32 accelerate() changed no phoneme. "
    if has_gpu:
        most = max(len(result.disagreements(before)) for result in after)
        return f"{text}In a lower precision it changed at most {most} of {len(before.pronunciations)} words. {WHOLE}"
    return f"{text}{IDLE} {EXECUTED if len(after) > 1 else NO_GCC}"


def error_rate(pronunciations: dict, dictionary: dict) -> float:
    """Return the number of inserted, missing and exchanged phonemes as a share of the dictionary's phonemes."""
    errors = sum(
        min(g2p.edit_distance(phonemes, true) for true in dictionary[word])
        for word, (phonemes, _) in pronunciations.items()
    )
    return errors / sum(len(dictionary[word][0]) for word in pronunciations)


def sample(dictionary: dict, count: int) -> list[str]:
    return random.Random(0).sample(sorted(dictionary), min(count, len(dictionary)))


def print_row(name: str, result: Pronounced, expected: Pronounced | None, rate: str) -> None:
    words = len(result.pronunciations)
    same = words - len(result.disagreements(expected)) if expected else "-"
    print_text(TABLE.format(name, result.precision, words, same, rate).rstrip())


def print_text(text: str) -> None:
    """Print a text. On a terminal it overwrites the progress line."""
    print(CLEAR + text if sys.stdout.isatty() else text, flush=True)


def show_progress(text: str) -> None:
    """Print a line that the next text overwrites, on a terminal only. Elsewhere the table's rows show the progress."""
    if sys.stdout.isatty():
        print(CLEAR + text, end="", flush=True)


def wrap(text: str) -> str:
    return textwrap.fill(text, COLUMNS)


if __name__ == "__main__":
    main()
