"""The near cache: bundles and fragments in this process, each as it was when Redis last said that all of them hold.

Pure memory, for one event loop: it asks nobody and knows no time. Whoever reads from Redis fills it (near_reader), and
what Redis tells of changes empties it (redis_tracking).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final

from pipeline.stores.store import Fetched
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey

MARKS_MAX = 20_000
"""Names that were invalidated lately, for reads that are on their way. A read that is older than the oldest of them
fills nothing: at 20,000 changes a second, one that took more than a second."""

FORMER_MAX = 1_000
"""Bundles as they were before a change, for `lately`; beside `bytes_max`."""

_ENTRY_BYTES = 450
_META_BYTES = 320
_SOURCE_BYTES = 230
_REFERENCE_BYTES = 180
_ROW_BYTES = 190
_TOKENS_BYTES = 120
_BUNDLE_BYTES = 350
_PART_BYTES = 60

Name = tuple[str, str]
"""Unit and key."""


class Unknown(Enum):
    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
"""Nobody knows whether Redis has it; None says that it has none."""


class NearBundle:
    """A bundle with its fragments: the same object until one of them changes. `memo` is for what its user made of it;
    room for the spliced bytes is counted."""

    __slots__ = ("_parts", "fetched", "memo")

    def __init__(self, fetched: Fetched, parts: tuple[_Entry, ...]) -> None:
        self.fetched = fetched
        self.memo: object | None = None
        self._parts = parts


class _Entry:
    __slots__ = ("bundle_bytes", "ended_at_s", "label", "name", "own_bytes", "stored", "used", "valid")

    def __init__(self, name: Name, stored: Stored | None) -> None:
        self.name, self.stored, self.valid = name, stored, True
        self.used = False
        """Since it is here."""
        self.ended_at_s: float | None = None
        self.label: object = None
        """Of one that was changed: when it was last confirmed to hold, and what was said of all that held then."""
        self.own_bytes = _bytes_of(name, stored)
        self.bundle_bytes = 0
        """Of the NearBundle that this is the root of."""


class NearCache:
    """At most `bytes_max`; the least recently used go first. The counters only grow.

    `confirmed_at_s`, on the event loop's clock: all that is in here was so then, or later. None while nobody tells of
    changes; then nothing is filled in.
    """

    def __init__(self, bytes_max: int, changed: Callable[[Sequence[UnitKey] | None], None] | None = None) -> None:
        """`changed` is told of what Redis says has changed, whether it is in here or not; None: anything may have."""
        self.bytes_max, self._changed = bytes_max, changed
        self.bytes_used = 0
        self.confirmed_at_s: float | None = None
        self.hits = self.misses = self.invalidations = self.flushes = self.evictions = 0
        self.wanted_again: Callable[[list[UnitKey]], None] | None = None
        """Is told of what has changed and was used since it was filled in: somebody will want it soon."""
        self._entries: OrderedDict[Name, _Entry] = OrderedDict()
        self._bundles: dict[str, NearBundle] = {}
        self.label_now: Callable[[], object] | None = None
        """What is said of all that is in here, since the last confirmation; see `lately`."""
        self._former: OrderedDict[str, NearBundle] = OrderedDict()
        self._marks: OrderedDict[Name, int] = OrderedDict()
        self._changes = self._oldest_ticket = 0

    def __len__(self) -> int:
        return len(self._entries)

    def bundle(self, key: str) -> NearBundle | None:
        """Of a root key text; None unless it and all its fragments are known. A bundle that Redis has none of is known,
        too: then `fetched.bundle` is None."""
        found = self._bundles.get(key)
        if found is None:
            found = self._composed(key)
            if found is None:
                self.misses += 1
                return None
        used = self._entries.move_to_end
        for entry in found._parts:
            entry.used = True
            # No fragment knows whose it is: one may be in 58,000 bundles, and changes often.
            if not entry.valid:
                self._forget_bundle(key)
                return self.bundle(key)
            used(entry.name)
        self.hits += 1
        return found

    def lately(self, key: str, not_before_s: float) -> tuple[NearBundle, object | None] | None:
        """As `bundle`, or as it was before a change that was told of a moment ago, if all of it was confirmed at
        `not_before_s` or later: then with what `label_now` said at that confirmation. It holds no less than that says;
        hot fragments change all the time, and what is new of them takes a moment to come."""
        found = self.bundle(key)
        if found is not None:
            return found, None
        former = self._former.get(key)
        if former is None:
            return None
        oldest: _Entry | None = None
        for part in former._parts:
            if part.valid:
                continue
            if part.ended_at_s is None or part.ended_at_s < not_before_s:
                del self._former[key]
                return None
            if oldest is None or oldest.ended_at_s is None or part.ended_at_s < oldest.ended_at_s:
                oldest = part
        self.hits += 1
        return former, None if oldest is None else oldest.label

    def fragment(self, unit: str, key: str) -> Stored | Unknown | None:
        entry = self._entries.get((unit, key))
        if entry is None:
            return UNKNOWN
        self._entries.move_to_end(entry.name)
        entry.used = True
        return entry.stored

    def begin(self) -> int:
        """Take it before a read goes out, for `fill`. It need not be given back."""
        return self._changes

    def fill(self, ticket: int, values: Mapping[UnitKey, Stored | None]) -> None:
        """What a read gave that went out after `begin` gave the ticket, from the server that tells of changes. A name
        that was invalidated since stays unknown: nobody can say whether the read saw that change."""
        if self.confirmed_at_s is None or ticket < self._oldest_ticket:
            return
        for name, stored in values.items():
            place = (name.unit, name.key)
            if self._marks.get(place, 0) <= ticket:
                self._put(place, None if stored is None or stored.deleted else stored)
        self._shrink()

    def invalidate(self, names: Sequence[UnitKey]) -> None:
        self._changes += 1
        self.invalidations += len(names)
        if self._changed is not None:
            self._changed(names)
        marks = self._marks
        wanted: list[UnitKey] = []
        for name in names:
            place = (name.unit, name.key)
            marks[place] = self._changes
            marks.move_to_end(place)
            entry = self._entries.get(place)
            if entry is not None:
                if self.label_now is not None:
                    entry.ended_at_s, entry.label = self.confirmed_at_s, self.label_now()
                self._drop(entry)
                if entry.used:
                    wanted.append(name)
        if wanted and self.wanted_again is not None:
            self.wanted_again(wanted)
        while len(marks) > MARKS_MAX:
            _, self._oldest_ticket = marks.popitem(last=False)

    def flush(self) -> None:
        """Nothing is known any more, and no read that is on its way fills anything."""
        self._changes += 1
        self.flushes += 1
        if self._changed is not None:
            self._changed(None)
        self._oldest_ticket = self._changes
        self._marks.clear()
        for entry in self._entries.values():
            entry.valid = False
        self._entries.clear()
        self._bundles.clear()
        self._former.clear()
        self.bytes_used = 0

    def _composed(self, key: str) -> NearBundle | None:
        root = self._entries.get((ROOT_UNIT, key))
        if root is None:
            return None
        parts = {root.name: root}
        fragments: dict[Name, Stored] = {}
        length = 0
        if root.stored is not None and root.stored.meta is not None:
            length = len(root.stored.body)
            for reference in root.stored.meta.fragments:
                if reference.key is None or (reference.unit, reference.key) in parts:
                    continue
                entry = self._entries.get((reference.unit, reference.key))
                if entry is None:
                    return None
                parts[entry.name] = entry
                if entry.stored is not None:
                    fragments[entry.name] = entry.stored
                    length += len(entry.stored.body)
        found = NearBundle(Fetched(root.stored, fragments), tuple(parts.values()))
        # Without fragments the spliced bytes are those of the root.
        root.bundle_bytes = _BUNDLE_BYTES + _PART_BYTES * len(parts) + (length if fragments else 0)
        self.bytes_used += root.bundle_bytes
        self._bundles[key] = found
        self._former.pop(key, None)
        for part in found._parts:
            self._entries.move_to_end(part.name)
        self._shrink()
        return found

    def _put(self, name: Name, stored: Stored | None) -> None:
        known = self._entries.get(name)
        if known is not None:
            if _same(known.stored, stored):
                self._entries.move_to_end(name)
                return
            self._drop(known)
        entry = self._entries[name] = _Entry(name, stored)
        self.bytes_used += entry.own_bytes

    def _drop(self, entry: _Entry) -> None:
        entry.valid = False
        del self._entries[entry.name]
        self.bytes_used -= entry.own_bytes
        unit, key = entry.name
        if unit == ROOT_UNIT and (bundle := self._bundles.pop(key, None)) is not None:
            self.bytes_used -= entry.bundle_bytes
            self._keep_former(key, bundle)

    def _forget_bundle(self, key: str) -> None:
        found = self._bundles.pop(key, None)  # one that is larger than the cache has gone by itself
        if found is not None:
            self.bytes_used -= found._parts[0].bundle_bytes
            self._keep_former(key, found)

    def _keep_former(self, key: str, bundle: NearBundle) -> None:
        if self.label_now is None:
            return
        self._former[key] = bundle
        if len(self._former) > FORMER_MAX:
            self._former.popitem(last=False)

    def _shrink(self) -> None:
        while self.bytes_used > self.bytes_max and self._entries:
            self.evictions += 1
            self._drop(next(iter(self._entries.values())))


def _same(one: Stored | None, other: Stored | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.counter == other.counter and one.meta == other.meta


def _bytes_of(name: Name, stored: Stored | None) -> int:
    """What the interpreter takes for it, about: objects, their places in tables, and the bytes themselves."""
    size = _ENTRY_BYTES + len(name[0]) + len(name[1])
    return size if stored is None or stored.meta is None else size + len(stored.body) + _meta_bytes(stored.meta)


def _meta_bytes(meta: Meta) -> int:
    references = sum(_REFERENCE_BYTES + len(one.unit) + len(one.key or "") for one in meta.fragments)
    rows = sum(_ROW_BYTES + len(one.key or "") for one in meta.rows)
    tokens = sum(_TOKENS_BYTES + len(path) for path in meta.tokens)
    return _META_BYTES + _SOURCE_BYTES * len(meta.sources) + references + rows + tokens
