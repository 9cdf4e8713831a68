"""Takes entries that were measured elsewhere into a table."""

import datetime
import json
import math
from collections import Counter

from .entries import Entry
from .store import key_text, try_parse_entry

Rank = tuple[bool, float]  # whether it is fresh, and when it was tuned


class Merge:
    """A table's raw entries, into which others are taken.

    Of two entries of one key the fresh one wins. If both are or none is, the one that was tuned later wins, or else the
    one that was there. Entries that this version does not understand are never replaced. They are added if nothing else
    has their key.

    Attributes:
        entries: the table's raw entries.
        counts: how many were "added" and "replaced", and for how many what was there was "kept". Of those added, how
            many are "not understood".
    """

    def __init__(self, entries: list):
        self.entries = list(entries)
        self.counts = Counter()
        self._texts = {_text(raw) for raw in entries}
        self._keys = {key_text(raw) for raw in entries}
        self._best: dict[str, tuple[Rank, int]] = {}  # by key, with the place in `entries`
        for place, raw in enumerate(entries):
            entry = try_parse_entry(raw)
            if isinstance(entry, Entry) and self._is_better(rank(entry), key_text(raw)):
                self._best[key_text(raw)] = rank(entry), place

    def take(self, raw) -> None:
        """Take one raw entry in, unless there is one as good."""
        entry, text, key = try_parse_entry(raw), _text(raw), key_text(raw)
        if text in self._texts:
            self.counts["kept"] += 1
        elif isinstance(entry, Entry):
            self._take_understood(raw, rank(entry), key)
        elif key is not None and key in self._keys:
            self.counts["kept"] += 1
        else:
            self.entries.append(raw)
            self.counts.update(["added", "not understood"])
        self._texts.add(text)
        self._keys.add(key)

    def _take_understood(self, raw, ranked: Rank, key: str) -> None:
        if not self._is_better(ranked, key):
            self.counts["kept"] += 1
        elif key in self._best:
            _, place = self._best[key]
            self.entries[place] = raw
            self._best[key] = ranked, place
            self.counts["replaced"] += 1
        else:
            self._best[key] = ranked, len(self.entries)
            self.entries.append(raw)
            self.counts["added"] += 1

    def _is_better(self, ranked: Rank, key: str) -> bool:
        return key not in self._best or ranked > self._best[key][0]


def rank(entry: Entry) -> Rank:
    """Return what orders entries of one key. The greatest is the one to use."""
    return not entry.stale_reason, _seconds(entry.tuned_at)


def _seconds(date: str) -> float:
    """Return a date as seconds since 1970, in UTC unless it names a time zone. Return -inf if it is none."""
    try:
        read = datetime.datetime.fromisoformat(date.removesuffix("Z") + "+00:00" * date.endswith("Z"))
        return (read if read.tzinfo else read.replace(tzinfo=datetime.timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return -math.inf


def _text(raw) -> str:
    return json.dumps(raw, sort_keys=True)
