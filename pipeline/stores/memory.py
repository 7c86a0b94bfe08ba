"""The in-memory reference of every store: what the Redis stores must do, in plain Python, for tests and simulation."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence

from pipeline.stores.store import (
    AppliedPosition,
    CellOutcome,
    CellPlace,
    CellRow,
    CellWrite,
    Contribution,
    Fetched,
    Look,
    Membership,
    Partition,
    RelationRead,
    RelationView,
    RowOutcome,
    RowWrite,
    StoredRow,
)
from schemas.bundle import ROOT_UNIT, Stored, UnitKey

_Links = tuple[str | None, ...]


class _Row:
    def __init__(self, write: RowWrite, former: list[_Links]) -> None:
        self.version, self.values, self.links, self.former = write.version, write.values, write.links, former
        self.commit_time_us = write.commit_time_us


class MemoryRows:
    """See RowStore."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, _Row]] = {}
        self.floors: dict[str, str] = {}

    async def apply(self, writes: Sequence[RowWrite]) -> list[RowOutcome]:
        touched: set[tuple[str, str]] = set()
        return [self._apply(write, touched) for write in writes]

    def _apply(self, write: RowWrite, touched: set[tuple[str, str]]) -> RowOutcome:
        rows = self.tables.setdefault(write.table, {})
        stored = rows.get(write.key)
        key = (write.table, write.key)
        floor = self.floors.get(write.table, "")
        if write.version < floor and (stored is None or write.version > stored.version):
            return RowOutcome(False, [])
        if stored is None:
            rows[write.key] = _Row(write, [])
            touched.add(key)
            return RowOutcome(True, [])
        if write.version <= stored.version:
            touched.add(key)
            equal = write.version == stored.version
            return RowOutcome(equal, list(stored.former) if equal else [])
        # A truncate writes from another partition: what its deletes or the row's own batch left undone is kept.
        unfinished = key in touched or floor in (write.version, stored.version)
        former = list(stored.former) if unfinished else []
        if stored.links and stored.links != write.links and stored.links not in former:
            former.append(stored.links)
        same = stored.values == write.values and key not in touched and not former
        touched.add(key)
        rows[write.key] = _Row(write, former)
        return RowOutcome(not same, list(former))

    async def read(self, keys: Sequence[tuple[str, str]]) -> list[StoredRow | None]:
        return [self._read(table, key) for table, key in keys]

    def _read(self, table: str, key: str) -> StoredRow | None:
        row = self.tables.get(table, {}).get(key)
        if row is not None:
            return StoredRow(row.version, row.commit_time_us if row.values else 0, list(row.values or ()))
        return StoredRow(self.floors[table], 0, []) if table in self.floors else None

    async def truncate(self, table: str, version: str) -> list[str]:
        self.floors[table] = max(version, self.floors.get(table, ""))
        rows = self.tables.get(table, {})
        return [
            key
            for key, row in rows.items()
            if (row.values is not None and row.version < version) or (row.values is None and row.version == version)
        ]


class MemoryCells:
    """See CellStore: rows lie in `rows`, where MemoryRows reads them."""

    def __init__(self, rows: MemoryRows) -> None:
        self.rows = rows
        self.states: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        self.inhabitants: dict[tuple[str, str], dict[str, None]] = {}
        self.stones: dict[tuple[str, str], set[bytes]] = {}
        self.expiries: dict[tuple[str, str], int] = {}
        self._tokens = 0

    async def read(self, places: Sequence[CellPlace]) -> list[CellRow]:
        found = []
        for place in places:
            state, token = self.states.get((place.table, place.key), (b"", b""))
            row = self.rows.tables.get(place.table, {}).get(place.key)
            values = list(row.values or ()) if row is not None else []
            found.append(CellRow(state, token, values, self._stones_of(place)))
        return found

    async def write(self, writes: Sequence[CellWrite]) -> list[CellOutcome]:
        return [self._write(write) for write in writes]

    def _write(self, write: CellWrite) -> CellOutcome:
        place = write.place
        name = (place.table, place.key)
        if place.partition is not None:
            self.inhabitants.setdefault((place.table, place.partition), {})[place.key] = None
        if self.states.get(name, (b"", b""))[1] != write.token:
            return CellOutcome(False)
        rows = self.rows.tables.setdefault(place.table, {})
        stored = rows.get(place.key)
        former = [] if stored is None or write.confirmed else list(stored.former)
        if stored is not None and stored.links and stored.links != write.links and stored.links not in former:
            former.append(stored.links)
        row = RowWrite(place.table, place.key, write.version, write.values, write.links, write.commit_time_us)
        rows[place.key] = _Row(row, former)
        self._tokens += 1
        self.states[name] = (write.state, b"%016d" % self._tokens)
        self.expiries.pop(name, None)
        if write.expires_us is not None:
            self.expiries[name] = write.expires_us
        return CellOutcome(True, list(former), self._stones_of(place))

    async def bury(self, table: str, partition: str, tombstone: bytes) -> list[str]:
        self.stones.setdefault((table, partition), set()).add(tombstone)
        return list(self.inhabitants.get((table, partition), ()))

    async def due(self, now_us: int, limit: int, done: Sequence[Look] = ()) -> list[tuple[str, str]]:
        for look in done:
            if self.expiries.get((look.table, look.key)) == look.look_us:
                del self.expiries[look.table, look.key]
                if look.next_us is not None:
                    self.expiries[look.table, look.key] = look.next_us
        return [name for name, time_us in self.expiries.items() if time_us <= now_us][:limit]

    def _stones_of(self, place: CellPlace) -> frozenset[bytes]:
        return frozenset(self.stones.get((place.table, place.partition or ""), ()))


class _Place:
    """One parent value of one relation."""

    def __init__(self) -> None:
        self.members: dict[str, tuple[str, Contribution | None]] = {}
        self.indexes: dict[int, list[bytes]] = {}
        self.counters: dict[bytes, int] = {}
        self.references: dict[bytes, int] = {}

    def write(self, membership: Membership) -> None:
        known = self.members.get(membership.child)
        if known is not None:
            if known[0] > membership.version:
                return
            if known[1] is not None:
                self._add(known[1], -1)
        self.members[membership.child] = (membership.version, membership.contribution)
        if membership.contribution is not None:
            self._add(membership.contribution, 1)

    def _add(self, contribution: Contribution, sign: int) -> None:
        for number, entry in enumerate(contribution.entries):
            if entry is not None:
                index = self.indexes.setdefault(number, [])
                if sign > 0:
                    insort(index, entry)
                else:
                    index.remove(entry)
        for field, amount in contribution.counters:
            self._count(field, sign * amount)
        for value, field in contribution.distincts:
            before = self.references.get(value, 0)
            self.references[value] = before + sign
            if before == 0 or before + sign == 0:
                self._count(field, sign)

    def _count(self, field: bytes, amount: int) -> None:
        self.counters[field] = self.counters.get(field, 0) + amount
        if not self.counters[field]:
            del self.counters[field]


class MemoryRelations:
    """See RelationStore."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, str], _Place] = {}

    async def relate(self, memberships: Sequence[Membership]) -> None:
        for membership in memberships:
            self.places.setdefault((membership.relation, membership.parent), _Place()).write(membership)

    async def read(self, reads: Sequence[RelationRead]) -> list[RelationView]:
        return [self._read(read) for read in reads]

    def _read(self, read: RelationRead) -> RelationView:
        place = self.places.get((read.relation, read.parent))
        if place is None:
            return RelationView()
        if read.limit:
            return RelationView(entries=place.indexes.get(0, [])[: read.limit])
        tops: dict[bytes, list[bytes | None]] = {}
        if read.tops:
            for group in {field[:-3] for field in place.counters}:
                tops[group] = [self._first(place.indexes.get(number, []), group) for number in range(read.tops)]
        return RelationView(counters=dict(place.counters), tops=tops)

    @staticmethod
    def _first(index: list[bytes], prefix: bytes) -> bytes | None:
        return next((entry for entry in index if entry.startswith(prefix)), None)

    async def members(self, relation: int, parents: Sequence[str], limit: int) -> list[list[str] | None]:
        found: list[list[str] | None] = []
        for parent in parents:
            place = self.places.get((relation, parent))
            over = place is not None and len(place.members) > limit
            found.append(None if over else self._children(place))
        return found

    async def all_members(self, relation: int, parent: str) -> list[str]:
        return self._children(self.places.get((relation, parent)))

    @staticmethod
    def _children(place: _Place | None) -> list[str]:
        if place is None:
            return []
        return [child for child, (_, contribution) in place.members.items() if contribution is not None]


class MemoryBundles:
    """See BundleStore, BundleReader and HistoryReader. Without a clock nothing ends: neither bundles nor, where
    `keeps_history`, former ones."""

    def __init__(self, applied: Mapping[Partition, AppliedPosition] | None = None, keeps_history: bool = False) -> None:
        self.keeps_history = keeps_history
        self.former: dict[tuple[UnitKey, int], Stored] = {}
        self.counters: dict[UnitKey, int] = {}
        self.values: dict[UnitKey, Stored] = {}
        self.applied = applied if applied is not None else {}

    async def mark_dirty(self, keys: Sequence[UnitKey]) -> list[int]:
        for key in keys:
            self.counters[key] = self.counters.get(key, 0) + 1
        return [self.counters[key] for key in keys]

    async def put(self, items: Sequence[tuple[UnitKey, Stored]]) -> list[bool]:
        return [self._put(key, stored) for key, stored in items]

    def _put(self, key: UnitKey, stored: Stored) -> bool:
        known = self.values.get(key)
        if known is not None and known.counter > stored.counter:
            return False
        if self.keeps_history and known is not None and not known.deleted and known.counter != stored.counter:
            self.former[key, known.counter] = known
        self.values[key] = stored
        return _hash(known) != _hash(stored)

    async def get(self, keys: Sequence[UnitKey]) -> list[Stored | None]:
        found = [self.values.get(key) for key in keys]
        return [None if stored is None or stored.deleted else stored for stored in found]

    async def read_at(self, places: Sequence[tuple[UnitKey, int]]) -> list[Stored | None]:
        return [self._at(key, counter) for key, counter in places]

    def _at(self, key: UnitKey, counter: int) -> Stored | None:
        present = self.values.get(key)
        if present is not None and present.counter == counter:
            return None if present.deleted else present
        return self.former.get((key, counter))

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        return [await self._fetch(key) for key in keys]

    async def _fetch(self, key: str) -> Fetched:
        bundle = (await self.get([UnitKey(ROOT_UNIT, key)]))[0]
        references = bundle.meta.fragments if bundle is not None and bundle.meta is not None else []
        wanted = {(reference.unit, reference.key) for reference in references if reference.key is not None}
        fragments = {}
        for unit, parent in wanted:
            stored = (await self.get([UnitKey(unit, parent)]))[0]
            if stored is not None:
                fragments[unit, parent] = stored
        return Fetched(bundle, fragments)

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        return dict(self.applied)


class MemoryMarks:
    """See MarkStore."""

    def __init__(self) -> None:
        self.offsets: dict[Partition, int] = {}
        self.applied: dict[Partition, AppliedPosition] = {}

    async def write_marks(self, offsets: Mapping[Partition, int]) -> None:
        self.offsets.update(offsets)

    async def read_marks(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        marks = {partition: self.offsets.get(partition, 0) for partition in partitions}
        for partition, mark in marks.items():
            self.applied.setdefault(partition, AppliedPosition("", mark, "", 0))
        return marks

    async def write_applied(self, positions: Mapping[Partition, AppliedPosition]) -> None:
        for partition, position in positions.items():
            self.applied[partition] = position.after(self.applied.get(partition))

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        return dict(self.applied)


def _hash(stored: Stored | None) -> str | None:
    return None if stored is None or stored.meta is None else stored.meta.hash
