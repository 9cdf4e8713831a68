"""A pairwise cover: rows in which every two values of two factors meet at least once."""

import itertools
import random


def pairwise(*factors: tuple) -> list[tuple]:
    """Return the rows of a greedy cover, the same on every machine. Each row is the best of fifty random ones."""
    draw = random.Random(0)
    uncovered = set()
    for (i, a), (j, b) in itertools.combinations(enumerate(factors), 2):
        uncovered |= {(i, x, j, y) for x in a for y in b}
    rows = []
    while uncovered:
        i, x, j, y = min(uncovered, key=repr)
        best, best_new = None, set()
        for _ in range(50):
            row = [draw.choice(values) for values in factors]
            row[i], row[j] = x, y
            new = uncovered & {(a, row[a], b, row[b]) for a, b in itertools.combinations(range(len(row)), 2)}
            if len(new) > len(best_new):
                best, best_new = tuple(row), new
        rows.append(best)
        uncovered -= best_new
    return rows
