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
from triton_gru.plan.config import format_implementation
from triton_gru.plan.device import KNOWN_DEVICES, find_device

BATCH = 64  # words
PASSES = 3  # over all words; the time of the fastest pass is printed
FEW = 6  # words that the kernels pronounce on a CPU
SHOWN = 4  # words that are printed as examples
SHOWN_DIFFERENT = 3  # words that are printed because their phonemes differ
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
    """Load the model and its dictionary, and print the demo of --words words."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_words = 20_000 if device == "cuda" else 2_000
    parser.add_argument(
        "--words", type=int, default=default_words, help=f"number of words to pronounce (default: {default_words})"
    )
    options = parser.parse_args()
    if device == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other on a busy CPU take up to ten times as long
    present(g2p.load_model().to(device), g2p.load_dictionary(), options.words, device)


@torch.no_grad()
def present(model: g2p.Pronouncer, dictionary: dict, num_words: int, device: str) -> None:
    """Print the demo of a model on ``device``: examples, a table with a row for each run, and an explanation.

    The runs pronounce ``num_words`` words of the dictionary. Exception: kernels that are executed on a CPU pronounce
    at most `FEW`. ``model`` is accelerated in place.
    """
    gpu = find_device(torch.device(device))
    machine = f"GPU: {gpu.name}" if gpu else "no GPU: times below are nn.GRU's on this CPU, not the kernels'"
    print_text(wrap(f"triton-gru {triton_gru.__version__}, torch {torch.__version__}, {machine}.") + "\n")
    demo = Demo(model, g2p.list_phonemes(dictionary), choose_words(dictionary, num_words), device)
    demo.print_examples()
    print_text("\ntriton_gru.accelerate(model) replaces nn.GRU and nn.GRUCell. Are the phonemes still the same?\n")
    print_text(TABLE.format("implementation", "precision", "words", "same as nn.GRU", "words/s"))

    before = demo.pronounce("nn.GRU (before)", "fp32")
    triton_gru.accelerate(model)
    after = [demo.pronounce(f"accelerate() -> {demo.name_kernels()}", "fp32", before)]
    accelerated_in_fp32 = after[0]
    must_agree(accelerated_in_fp32, before)
    reason = demo.explain_choice()
    if gpu:
        for precision in list(PRECISIONS)[1:]:
            after.append(demo.pronounce(f"accelerate() -> {demo.name_kernels(precision)}", precision, before))
    elif shutil.which("gcc"):
        with emulate_gpu(KNOWN_DEVICES["H200"], seed=0):
            executed = demo.pronounce_few(before)
        must_agree(executed[0], before)  # in fp32, the first precision
        after += executed
    report_disagreements(after, before)
    print_text("\n" + wrap(reason))
    error = compute_error_rate(before.pronunciations, dictionary)
    errors = f"The model itself is wrong in {error:.1%} of its dictionary's phonemes."
    print_text(wrap(f"{explain_numbers(after, before, bool(gpu))} {errors}"))
    print_text("Next: .venv/bin/triton-gru info; README.md; scripts/examples/README.md.")


@dataclass
class Pronounced:
    """The pronunciations of words in a precision.

    Attributes:
        precision: a key of `PRECISIONS`.
        pronunciations: word -> the phonemes, and the smallest gap between the two best logits of a phoneme.
        words_per_second: 0 if not timed.
    """

    precision: str
    pronunciations: dict[str, tuple[tuple[str, ...], float]]
    words_per_second: float

    def find_disagreements(self, expected: "Pronounced") -> list[str]:
        """Return the words whose phonemes differ from those in ``expected``."""
        return [
            word for word, (phonemes, _) in self.pronunciations.items() if phonemes != expected.pronunciations[word][0]
        ]


class Demo:
    """A model and the words that it pronounces.

    Args:
        model: the model in fp32.
        phoneme_names: the names of the model's phonemes.
        words: the words.
        device: where the model is.
    """

    def __init__(self, model: g2p.Pronouncer, phoneme_names: list[str], words: list[str], device: str):
        self.model, self.phoneme_names, self.words, self.device = model, phoneme_names, words, device

    def print_examples(self) -> None:
        """Print a line on the model, and its phonemes of a few words."""
        hidden = self.model.encoder.hidden_size
        print_text(
            f"A trained model, H = {hidden}: an nn.GRU reads the letters of a word, an nn.GRUCell writes phonemes."
        )
        set_precision("fp32")
        for word in self.words[:SHOWN]:
            pronunciations, _ = pronounce_batch(self.model, [word], self.phoneme_names, self.device)
            phonemes, _ = pronunciations[word]
            print_text(f"  {word:14} {' '.join(phonemes)}"[:COLUMNS])

    def name_kernels(self, precision: str = "fp32") -> str:
        """Return the kernels of the encoder and of the decoder: ``"grid + step"``, or one name if both are the same."""
        kernels = dict.fromkeys(
            plan.kernel for plan in make_plans(copy_in_precision(self.model, precision), self.device)
        )
        return " + ".join(map(format_implementation, kernels))

    def explain_choice(self) -> str:
        """Return a text with the reason why the encoder's plan chose its kernel, or nn.GRU.

        For nn.GRU, the reason against the first kernel says more. If there is one, it replaces the plan's reason.
        """
        encoder_plan, _ = make_plans(copy_in_precision(self.model, "fp32"), self.device)
        reason = encoder_plan.reason
        if encoder_plan.kernel == "torch" and encoder_plan.rejection_reasons:
            _, reason = encoder_plan.rejection_reasons[0]  # (kernel, reason)
        return f"Why {format_implementation(encoder_plan.kernel)}? model.encoder.plan(x) says: {reason}."

    def pronounce(self, name: str, precision: str, expected: Pronounced | None = None) -> Pronounced:
        """Pronounce all words in a precision, time the fastest of several passes, and print the row ``name``.

        The row has the number of words whose phonemes are those in ``expected``, or "-" if that is None.
        """
        model, batches = copy_in_precision(self.model, precision), g2p.make_batches(self.words, BATCH)
        pass_seconds = []
        for finished_passes in range(PASSES):
            pronunciations, seconds = {}, 0.0
            for batch in batches:
                batch_pronunciations, batch_seconds = pronounce_batch(model, batch, self.phoneme_names, self.device)
                pronunciations |= batch_pronunciations
                seconds += batch_seconds
                words_done = finished_passes * len(self.words) + len(pronunciations)
                show_progress(f"  {name}, {precision}: {words_done} of {PASSES * len(self.words)} words")
            pass_seconds.append(seconds)
        result = Pronounced(precision, pronunciations, len(pronunciations) / min(pass_seconds))
        print_row(name, result, expected, f"{result.words_per_second:.0f}")
        return result

    def pronounce_few(self, expected: Pronounced) -> list[Pronounced]:
        """Pronounce a few words of one length in every precision, by the kernels that serve the model on a GPU.

        Print a row for each precision, with the number of words whose phonemes are those in ``expected``.
        """
        words = [word for word in self.words if len(word) == len(self.words[0])][:FEW]
        self.model.encoder.backend, self.model.decoder.backend = "grid", "step"
        results = []
        for precision in PRECISIONS:
            name = f"{self.name_kernels(precision)}, executed on CPU"
            show_progress(f"  {name}, {precision}: {len(words)} words, some seconds")
            model = copy_in_precision(self.model, precision)
            pronunciations, _ = pronounce_batch(model, words, self.phoneme_names, self.device)
            results.append(Pronounced(precision, pronunciations, words_per_second=0.0))
            print_row(name, results[-1], expected, "not timed")
        return results


def pronounce_batch(model, words: list[str], phoneme_names: list[str], device: str) -> tuple[dict, float]:
    """Return the pronunciations of words of one length, as in `Pronounced`, and the seconds that the model took."""
    letters, start = g2p.encode(words, device), time.perf_counter()
    phoneme_rows, gap_rows = (result.tolist() for result in model(letters))
    seconds, pronunciations = time.perf_counter() - start, {}
    for word, phonemes, gaps in zip(words, phoneme_rows, gap_rows):
        # After the end mark the model's phonemes mean nothing.
        end = phonemes.index(g2p.END) + 1 if g2p.END in phonemes else len(phonemes)
        pronunciations[word] = g2p.name_phonemes(phonemes, phoneme_names), min(gaps[:end])
    return pronunciations, seconds


def make_plans(model, device: str) -> list[triton_gru.Plan]:
    """Return the plans of the encoder and of the decoder for a batch of words."""
    letters = model.letters(g2p.encode(["word"] * BATCH, device))
    return [model.encoder.plan(letters), model.decoder.plan(letters[:, 0])]


def copy_in_precision(model, precision: str):
    """Set torch's precision, and return a copy of ``model`` in the dtype of that precision.

    ``model`` is the one in fp32. A copy of a copy would be rounded twice.
    """
    return copy.deepcopy(model).to(set_precision(precision))


def must_agree(result: Pronounced, expected: Pronounced) -> None:
    """Raise AssertionError if the phonemes of a word differ from those in ``expected``, by nn.GRU."""
    different = result.find_disagreements(expected)
    assert not different, f"{len(different)} words differ from those of nn.GRU, such as {different[:5]}"


def report_disagreements(results: list[Pronounced], expected: Pronounced) -> None:
    """Print a few words whose phonemes differ from those in ``expected``, by nn.GRU. The clearest come first.

    A difference is clear if nn.GRU's gap between the two best logits is large, so that rounding does not explain it.
    """
    different = []
    for result in results:
        for word in result.find_disagreements(expected):
            _, gap = expected.pronunciations[word]
            different.append((gap, result, word))
    different.sort(key=lambda entry: entry[0], reverse=True)
    if different:
        print_text("\nWords that differ, each after nn.GRU's smallest gap between the two best logits of a phoneme:")
    for gap, result, word in different[:SHOWN_DIFFERENT]:
        expected_phonemes, _ = expected.pronunciations[word]
        phonemes, _ = result.pronunciations[word]
        texts = f"{' '.join(expected_phonemes)}; in {result.precision} {' '.join(phonemes)}"
        print_text(f"  {gap:.4f}  {word}: {texts}"[:COLUMNS])


def explain_numbers(after: list[Pronounced], before: Pronounced, has_gpu: bool) -> str:
    """Return a text that explains the table: how many words changed, and what the times are of."""
    text = "What it means: in fp32 accelerate() changed no phoneme. "
    if has_gpu:
        max_changed = max(len(result.find_disagreements(before)) for result in after)
        num_words = len(before.pronunciations)
        return f"{text}In a lower precision it changed at most {max_changed} of {num_words} words. {WHOLE}"
    return f"{text}{IDLE} {EXECUTED if len(after) > 1 else NO_GCC}"


def compute_error_rate(pronunciations: dict, dictionary: dict) -> float:
    """Return the number of inserted, missing and exchanged phonemes as a share of the dictionary's phonemes.

    A word may have several pronunciations in the dictionary. The closest one is compared, and the first one's phonemes
    are counted.
    """
    errors = sum(
        min(g2p.edit_distance(phonemes, true_phonemes) for true_phonemes in dictionary[word])
        for word, (phonemes, _) in pronunciations.items()
    )
    return errors / sum(len(dictionary[word][0]) for word in pronunciations)


def choose_words(dictionary: dict, num_words: int) -> list[str]:
    """Return random words of the dictionary, the same in each run."""
    return random.Random(0).sample(sorted(dictionary), min(num_words, len(dictionary)))


def print_row(name: str, result: Pronounced, expected: Pronounced | None, rate: str) -> None:
    """Print a row of the table, with the number of words whose phonemes are those in ``expected``, or "-"."""
    num_words = len(result.pronunciations)
    num_same = num_words - len(result.find_disagreements(expected)) if expected else "-"
    print_text(TABLE.format(name, result.precision, num_words, num_same, rate).rstrip())


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
