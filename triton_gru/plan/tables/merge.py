"""A merge of entries that were measured elsewhere into a table."""

import datetime
import json
import math
from collections import Counter

from .entries import Entry
from .store import key_text, try_parse_entry

# (whether an entry is fresh, seconds from 1970 until it was tuned). Without a valid date the seconds are -inf.
Rank = tuple[bool, float]


class Merge:
    """The raw entries of a table, into which other entries are merged.

    If two entries have the same key, a fresh entry wins over a stale entry. If both are fresh or both stale, the entry
    that was tuned later wins, and with equal dates the table's entry. Entries that this version does not understand are
    never replaced. They are added if no other entry has their key, or if they have no key.

    Attributes:
        entries: the table's raw entries.
        counts: the number of merged entries by outcome. They were "added", "replaced" an entry, or lost, so that the
            table's entry was "kept". "not understood" are added entries that this version does not understand.
    """

    def __init__(self, entries: list):
        self.entries = list(entries)
        self.counts = Counter()
        self._texts = {_format_raw(raw) for raw in entries}
        self._keys = {key_text(raw) for raw in entries}
        self._best: dict[str, tuple[Rank, int]] = {}  # by key: the best rank, and its index in `entries`
        for index, raw in enumerate(entries):
            entry = try_parse_entry(raw)
            if isinstance(entry, Entry) and self._is_better(rank(entry), key_text(raw)):
                self._best[key_text(raw)] = rank(entry), index

    def take(self, raw) -> None:
        """Merge a raw entry, which is dropped if the table has an equal or better entry with its key.

        An entry that this version does not understand is dropped if the table has any entry with its key.
        """
        entry, text, key = try_parse_entry(raw), _format_raw(raw), key_text(raw)
        if text in self._texts:
            self.counts["kept"] += 1
        elif isinstance(entry, Entry):
            self._take_valid(raw, rank(entry), key)
        elif key is not None and key in self._keys:
            self.counts["kept"] += 1
        else:
            self.entries.append(raw)
            self.counts.update(["added", "not understood"])
        self._texts.add(text)
        self._keys.add(key)

    def _take_valid(self, raw, new_rank: Rank, key: str) -> None:
        """Merge a raw entry that this version understands."""
        if not self._is_better(new_rank, key):
            self.counts["kept"] += 1
        elif key in self._best:
            _, index = self._best[key]
            self.entries[index] = raw
            self._best[key] = new_rank, index
            self.counts["replaced"] += 1
        else:
            self._best[key] = new_rank, len(self.entries)
            self.entries.append(raw)
            self.counts["added"] += 1

    def _is_better(self, new_rank: Rank, key: str) -> bool:
        """Return whether an entry of this rank wins over the best entry with the key. True if there is none."""
        return key not in self._best or new_rank > self._best[key][0]


def rank(entry: Entry) -> Rank:
    """Return the rank of an entry. Of entries with the same key, `Merge` keeps the entry with the greatest rank."""
    return not entry.stale_reason, _seconds(entry.tuned_at)


def _seconds(date: str) -> float:
    """Return a date as seconds since 1970, in UTC unless it names a time zone. Return -inf if it is not a date."""
    try:
        parsed = datetime.datetime.fromisoformat(date.removesuffix("Z") + "+00:00" * date.endswith("Z"))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return -math.inf


def _format_raw(raw) -> str:
    """Return a raw entry as text, by which equal entries are recognized."""
    return json.dumps(raw, sort_keys=True)
