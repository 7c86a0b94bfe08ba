"""THE STORY's branch for wide-column tables: writes, cell by cell, become changes of rows.

Order does not matter: each write is merged into the row's state, and a state is replaced only by one that was merged
from it. A deletion of a partition or a range is kept beside its rows, for those that come later, and merged into those
that are known. What follows for a changed row (relate, dirty keys, assemble) is the same as for every other table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from pipeline import cells
from pipeline.cells import RowState, Tombstone
from pipeline.core.errors import Retryable
from pipeline.plan import Plan, TablePlan
from pipeline.relations import Links, links_of
from pipeline.report import BatchReport
from pipeline.rows import Change, Write
from pipeline.stores.store import CellOutcome, CellPlace, CellRow, CellStore, CellWrite, Look
from schemas.mutation import Mutation
from schemas.record import Record

_ROUNDS_MAX = 50
LOOK_AGAIN_US = 2_000_000
_NOWHERE = Record("", 0, 0, None, None)

Changed = tuple[Change, list[Links]]
"""A row as it is now, and the places that it may still have to leave."""


class _Row(msgspec.Struct):
    """What one batch does to one row. `foreign` mutations come from another Kafka partition than the row's own, or
    from the clock: what they lead to is confirmed by nothing that follows in the row's own partition. `live_us`,
    `to_kafka_us` and `snapshot_rows` as in Times."""

    table: TablePlan
    place: CellPlace
    key: tuple[object, ...]
    own: list[Mutation] = []
    foreign: list[Mutation] = []
    commit_time_us: int = 0
    live_us: list[int] = []
    to_kafka_us: list[int] = []
    snapshot_rows: int = 0

    def note_time(self, write: Write, foreign: bool) -> None:
        self.commit_time_us = max(self.commit_time_us, write.commit_time_us)
        if write.snapshot:
            self.snapshot_rows += 1
        elif write.commit_time_us > 0:
            self.live_us.append(write.commit_time_us)
            if foreign:
                self.to_kafka_us.append(write.to_kafka_us)


class _Merge(msgspec.Struct):
    """A row's next state. `repeats`: its consequences are drawn even when the row looks as before."""

    before: CellRow
    write: CellWrite
    repeats: bool


class Merging:
    """Carries out the writes of a batch. `now_us` is the clock by which values outlive their time. `foreign`: topics
    that others fill."""

    def __init__(self, plan: Plan, store: CellStore, now_us: Callable[[], int], foreign: Collection[str] = ()) -> None:
        self._plan, self._store, self._now_us, self._foreign = plan, store, now_us, foreign
        self._tables = {table.name: table for table in plan.tables.values()}
        self._looks: dict[tuple[str, str], Look] = {}

    async def process(self, writes: Sequence[Write], report: BatchReport) -> list[Changed]:
        """Raises Retryable when a store is away: the same batch again."""
        rows: dict[tuple[str, str], _Row] = {}
        for write in writes:
            if write.key is None:
                await self._bury(write, rows, report)
                continue
            row = self._row(rows, write.table, write.key, write.partition)
            row.key = tuple(write.key_row[column] for column in write.table.key_columns)
            row.own.append(write.mutation)
            row.note_time(write, write.table.topic in self._foreign)
        report.events += len(writes)
        return await self._merge(list(rows.values()), report)

    async def expire(self, limit: int, report: BatchReport) -> list[Changed]:
        """Rows in which something has lived its time. `settle` when all that follows from it is done."""
        self._looks.clear()
        due = await self._store.due(self._now_us(), limit)
        report.round_trips += 1
        rows: dict[tuple[str, str], _Row] = {}
        for table_name, key in due:
            table = self._tables.get(table_name)
            if table is not None:
                row = self._row(rows, table, key, partition_of(table, key))
                row.foreign.append(Mutation())
        return await self._merge(list(rows.values()), report)

    async def settle(self) -> None:
        """What the last `expire` found need not be looked at again."""
        looks = list(self._looks.values())
        self._looks.clear()
        if looks:
            await self._store.due(0, 0, looks)

    def _row(self, rows: dict[tuple[str, str], _Row], table: TablePlan, key: str, partition: str | None) -> _Row:
        found = rows.get((table.name, key))
        if found is None:
            found = rows[table.name, key] = _Row(table, CellPlace(table.name, key, partition), ())
        return found

    async def _bury(self, write: Write, rows: dict[tuple[str, str], _Row], report: BatchReport) -> None:
        """The deletion is kept first, then the known rows are found: a row that is written meanwhile meets it."""
        mutation, table = write.mutation, write.table
        if write.partition is None or mutation.deleted is None:
            return
        stone = cells.encode_tombstone(Tombstone(mutation.deleted, mutation.lower, mutation.upper))
        for key in await self._store.bury(table.name, write.partition, stone):
            row = self._row(rows, table, key, write.partition)
            row.foreign.append(Mutation())
            row.note_time(write, table.topic in self._foreign)
        report.round_trips += 1

    async def _merge(self, rows: list[_Row], report: BatchReport) -> list[Changed]:
        changed: dict[tuple[str, str], Changed] = {}
        for _ in range(_ROUNDS_MAX):
            if not rows:
                return list(changed.values())
            found = await self._store.read([row.place for row in rows])
            # Of a row that was listed and never written, only what its own partition says makes one.
            known = [(row, before) for row, before in zip(rows, found, strict=True) if row.own or before.token]
            rows = [row for row, _ in known]
            merges = [self._merged(row, before) for row, before in known]
            outcomes = await self._store.write([merge.write for merge in merges])
            report.round_trips += 2
            left = []
            for row, merge, outcome in zip(rows, merges, outcomes, strict=True):
                if outcome.written:
                    self._note(changed, row, merge, outcome, report)
                if not outcome.written or outcome.tombstones - merge.before.tombstones:
                    # Somebody else wrote the row, or a deletion came: merge again, with what is there now.
                    row.foreign.append(Mutation())
                    left.append(row)
            rows = left
        raise Retryable(f"{len(rows)} rows changed again and again while they were merged")

    def _merged(self, row: _Row, before: CellRow) -> _Merge:
        known = cells.decode_state(before.state)
        state = known if known.key else msgspec.structs.replace(known, key=row.key)
        listed = frozenset(row.table.columns)
        first_changed = False
        for number, mutation in enumerate(row.own):
            after = cells.merged(state, mutation, listed)
            first_changed = first_changed or (number == 0 and after is not state)
            state = after
        for mutation in row.foreign:
            state = cells.merged(state, mutation, listed)
        state = self._deleted_by_neighbours(row.table, state, before)
        now_us = self._now_us()
        state = cells.expired(state, now_us)
        look_us = next_us = cells.next_expiry_us(state)
        by_clock = cells.expired(known, now_us) is not known
        if by_clock or (known.foreign and not row.own):
            # No record repeats what the clock did: should we die before all of it is done, another look does it again.
            look_us = min(next_us or now_us + LOOK_AGAIN_US, now_us + LOOK_AGAIN_US)
            if not row.own:
                self._looks[row.place.table, row.place.key] = Look(row.place.table, row.place.key, look_us, next_us)
        confirmed = first_changed and not row.foreign and not known.foreign and not by_clock
        foreign = bool(row.foreign) or by_clock or (known.foreign and not first_changed)
        state = msgspec.structs.replace(state, foreign=foreign)
        values = cells.values_of(state, row.table.columns)
        write = CellWrite(
            row.place,
            before.token,
            cells.version_of_state(state),
            values,
            cells.encode_state(state),
            links_of(row.table, values) if values else (),
            row.commit_time_us,
            confirmed,
            look_us,
        )
        # What a foreign write led to may be undone, as what a redelivered one led to may be.
        return _Merge(before, write, not first_changed or known.foreign)

    def _deleted_by_neighbours(self, table: TablePlan, state: RowState, before: CellRow) -> RowState:
        """What has been said of the row's partition, or of a range in it, holds for the row."""
        if not before.tombstones:
            return state
        first = table.partition_columns
        types = [table.types.get(column) for column in table.key_columns[first:]]
        stones = map(cells.decode_tombstone, before.tombstones)
        newest = cells.newest_cover(stones, state.key[first:], types)
        return state if newest is None else cells.merged(state, Mutation(deleted=newest), frozenset())

    def _note(
        self,
        changed: dict[tuple[str, str], Changed],
        row: _Row,
        merge: _Merge,
        outcome: CellOutcome,
        report: BatchReport,
    ) -> None:
        write, name = merge.write, (row.table.name, row.place.key)
        same = write.values == merge.before.values and merge.before.token != b""
        if same and not outcome.former_links and not merge.repeats:
            report.stale += 1
            return
        change = Change(_NOWHERE, row.table, row.place.key, write.version, write.values or None, row.commit_time_us)
        change.links = write.links
        if name not in changed:
            report.times.live_us += row.live_us
            report.times.to_kafka_us += row.to_kafka_us
            report.times.snapshot_rows += row.snapshot_rows
        _, earlier = changed.get(name, (change, []))
        changed[name] = (change, [*earlier, *outcome.former_links])


def partition_of(table: TablePlan, key: str) -> str | None:
    """The partition key's text in a row's key text; None where the table has no clustering columns."""
    if table.partition_columns == len(table.key_columns):
        return None
    return "|".join(key.split("|")[: table.partition_columns])
