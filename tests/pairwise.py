"""A pairwise cover: rows in which every two values of two factors meet at least once."""

import itertools
import random

_DRAWS_PER_ROW = 50


def pairwise(*factors: tuple) -> list[tuple]:
    """Return rows, with one value of each factor, that cover all pairs of values of two factors.

    The rows are the same on every machine. Each is the one of `_DRAWS_PER_ROW` random rows with the most new pairs.
    """
    draw = random.Random(0)
    # Each pair is (index of a factor, its value, index of a later factor, its value).
    uncovered = set()
    for (i, values_i), (j, values_j) in itertools.combinations(enumerate(factors), 2):
        uncovered |= {(i, value_i, j, value_j) for value_i in values_i for value_j in values_j}
    rows = []
    while uncovered:
        i, value_i, j, value_j = min(uncovered, key=repr)
        best_row, best_pairs = None, set()
        for _ in range(_DRAWS_PER_ROW):
            row = [draw.choice(values) for values in factors]
            row[i], row[j] = value_i, value_j
            pairs = {(k, row[k], m, row[m]) for k, m in itertools.combinations(range(len(row)), 2)}
            new_pairs = uncovered & pairs
            if len(new_pairs) > len(best_pairs):
                best_row, best_pairs = tuple(row), new_pairs
        rows.append(best_row)
        uncovered -= best_pairs
    return rows
