"""A tiny case, its conditions, planted providers and rows read back, for tests of the perf suite."""

import csv
import itertools

from perf import measure, providers
from perf.case import Case
from perf.floors import Floors
from perf.measure import Conditions

CPU = Conditions("cpu", ("eager",), "warm", seconds=0.05)
KNOWN_FLOORS = Floors(
    memory=1e10, l2=1e11, matrix={("float32", "ieee"): 1e11}, launch={"eager": 1e-6}, l2_bytes=1 << 20
)
TINY = Case("fp32", hidden=16, batch=2, steps=3)


def measure_rows(names, case=TINY, conditions=CPU):
    """Measure the named providers and the baseline on a case. Return their rows by provider."""
    pairs = itertools.product(dict.fromkeys((providers.BASELINE, *names)), conditions.modes)
    return {row.provider: row for row in measure.measure(case, pairs, conditions, KNOWN_FLOORS)}


def plant_provider(monkeypatch, name, prepare):
    """Add a provider to the suite for a test. ``prepare(gru, x)`` returns a `Ready`."""
    monkeypatch.setitem(providers.PROVIDERS, name, prepare)


def read_csv(path):
    """Return the rows of a CSV as dictionaries of texts."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_finished_rows(path):
    """Return the rows of a sweep's CSV, without those with the status "begun"."""
    return [row for row in read_csv(path) if row["status"] != "begun"]
