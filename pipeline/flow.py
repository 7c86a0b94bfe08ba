"""THE STORY: a batch of records becomes bundles. Agents, simulation and evaluation all call this.

decode → complete partial rows → apply → relate → find dirty keys → increment, read, assemble, put. A crash between any
two steps is harmless: the batch comes again, an equal version counts as changed, and no step undoes a newer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pipeline import rows
from pipeline.affected import affected_by
from pipeline.bundle import Assembly, RowKey, foresee
from pipeline.dirty import Climb, MemberRead
from pipeline.merging import Merging
from pipeline.plan import Node, Plan, Values
from pipeline.relations import Links, memberships
from pipeline.report import BatchReport, DeadLetter
from pipeline.rows import Change, Truncation
from pipeline.stores.store import BundleStore, RelationRead, RelationStore, RelationView, RowStore, StoredRow
from schemas.bundle import TEXT_UNIT, Stored, UnitKey
from schemas.record import Record

LETTERS_AT_ONCE = 100

Step = Callable[[], Awaitable[Any]]
"""Asks a store for one thing; what it asks, it asks before it first waits."""


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """Above `parent_children_max` children, a parent's change goes through the dirty topic in chunks of `chunk_keys`;
    at most `assembly_keys` units are assembled together. For up to `foresight_keys` units the reads of deeper levels
    are foreseen: that costs a little work and saves a round trip, which only small batches feel."""

    parent_children_max: int = 1000
    chunk_keys: int = 500
    assembly_keys: int = 4000
    foresight_keys: int = 250
    dead_letter_keys_max: int = 100


class Flow:
    """The stages of one context version over its stores. Stateless between batches; safe to call concurrently for
    different partitions, while the batches of one partition must come one after the other, in order."""

    def __init__(
        self,
        plan: Plan,
        row_store: RowStore,
        relation_store: RelationStore,
        bundle_store: BundleStore,
        limits: FlowLimits | None = None,
        together: Callable[..., Awaitable[Any]] = asyncio.gather,
        in_order: bool = False,
        merging: Merging | None = None,
        embeds: bool = False,
        now_us: Callable[[], int] | None = None,
        foreign: Collection[str] = (),
    ) -> None:
        """`together` runs coroutines at once and gives their results; the simulation brings its own. `in_order`: the
        stores carry out what is asked of them in the order of asking, over all stores, without waiting for answers.
        `merging` is the way of wide-column tables; without it their records are refused. `embeds`: the report names the
        bundles whose texts are to be looked at. `now_us`: the clock of the report's times; without it there are none.
        `foreign`: topics that others fill.
        """
        self.plan, self.rows, self.relations, self.bundles = plan, row_store, relation_store, bundle_store
        self.limits = limits or FlowLimits()
        self._together, self._ordered_stores = together, in_order
        self.merging, self._embeds = merging, embeds
        self._now_us, self._foreign = now_us or (lambda: 0), foreign

    async def process(self, records: Sequence[Record]) -> BatchReport:
        """Applies records, each partition's in order. Raises Retryable when a store is away: same batch again."""
        decoded = rows.decode_batch(self.plan, records)
        report = BatchReport(dead_letters=decoded.dead_letters, applied=decoded.applied)
        for part in _split_at_truncations(decoded.changes):
            if isinstance(part, Truncation):
                await self._truncate(part, report)
            else:
                await self._changes(part, report)
        if decoded.writes:
            assert self.merging is not None, "this flow was made without the way of wide-column tables"
            changed = await self.merging.process(decoded.writes, report)
            report.times.applied = self._now_us()
            await self._relate_and_assemble(changed, report)
        await self._name_affected(report)
        return report

    async def expire(self, limit: int) -> BatchReport:
        """Takes out of wide-column rows what has lived its time, in about `limit` rows: `events` says in how many."""
        report = BatchReport()
        if self.merging is not None:
            changed = await self.merging.expire(limit, report)
            report.events = len(changed)
            await self._relate_and_assemble(changed, report)
            await self.merging.settle()
        return report

    async def rebuild(self, keys: Sequence[UnitKey]) -> BatchReport:
        """Assembles units again from what is stored: the dirty lane."""
        report = BatchReport()
        await self._assemble([key for key in keys if key.unit != TEXT_UNIT], report)
        report.texts_wanted.update((key.key, None) for key in keys if key.unit == TEXT_UNIT)
        return report

    async def _changes(self, changes: list[Change], report: BatchReport) -> None:
        changes = await self._complete(changes, report)
        if not changes:
            return
        report.events += len(changes)
        outcomes = await self.rows.apply([rows.write_of(change) for change in changes])
        report.round_trips += 1
        times = report.times
        times.applied = self._now_us()
        last: dict[tuple[str, str], Change] = {}
        formers: dict[tuple[str, str], list[Links]] = {}
        for change, outcome in zip(changes, outcomes, strict=True):
            if not outcome.changed:
                report.stale += 1
                continue
            if change.snapshot:
                times.snapshot_rows += 1
            elif change.commit_time_us:
                times.live_us.append(change.commit_time_us)
                if change.table.topic in self._foreign:
                    times.to_kafka_us.append(change.to_kafka_us)
            key = (change.table.name, change.key)
            last[key] = change
            formers.setdefault(key, []).extend(outcome.former_links)
        await self._relate_and_assemble([(change, formers[key]) for key, change in last.items()], report)

    async def _relate_and_assemble(self, changed: list[tuple[Change, list[Links]]], report: BatchReport) -> None:
        writes = []
        climb = Climb(self.plan)
        for change, former in changed:
            table, key = change.table, change.key
            writes += memberships(table, key, change.version, change.values, change.links, former)
            climb.changed(table, key, change.links, former)
        owed: list[Step] = [lambda: self.relations.relate(writes)] if writes else []
        owed = await self._climb(climb, report, owed)
        await self._fan_out(climb, report)
        known = {(change.table.name, change.key): change.values for change, _ in changed}
        await self._assemble(list(climb.keys), report, owed, known)
        report.texts_wanted.update(climb.texts)

    async def _complete(self, changes: list[Change], report: BatchReport) -> list[Change]:
        """Unchanged TOAST columns come from the row before."""
        needed = rows.rows_to_complete(changes)
        if not needed:
            return changes
        stored = dict(zip(needed, await self.rows.read(needed), strict=True))
        report.round_trips += 1
        completed, dead_letters = rows.complete(changes, stored)
        report.dead_letters += dead_letters
        return completed

    async def _truncate(self, truncation: Truncation, report: BatchReport) -> None:
        """The floor comes first, so that a row which arrives meanwhile stays out; then the rows go one by one."""
        table, version = truncation.table, truncation.version
        keys = await self.rows.truncate(table.name, version)
        nowhere = Record(table.topic, 0, 0, None, None)
        for chunk in _chunks(keys, self.limits.assembly_keys):
            changes = [Change(nowhere, table, key, version, None, truncation.commit_time_us) for key in chunk]
            await self._changes(changes, report)

    async def _climb(self, climb: Climb, report: BatchReport, owed: Sequence[Step] = ()) -> list[Step]:
        """Finds all keys. Steps that are `owed` go before the first read; gives back those still owed when none was
        needed."""
        steps = list(owed)
        while True:
            members, row_keys = climb.needed()
            if not members and not row_keys:
                return steps
            steps.append(partial(self._climb_read, members, row_keys))
            climb.supply(*(await self._in_order(steps, report))[-1])
            steps = []

    async def _climb_read(
        self, members: list[MemberRead], row_keys: list[RowKey]
    ) -> tuple[list[list[str] | None], list[StoredRow | None]]:
        """One level of the way up: children under each parent value, and rows."""
        limit = self.limits.parent_children_max
        places: dict[int, list[int]] = {}
        for number, (relation, _) in enumerate(members):
            places.setdefault(relation, []).append(number)
        asked: list[Awaitable[Any]] = [
            self.relations.members(relation, [members[number][1] for number in numbers], limit)
            for relation, numbers in places.items()
        ]
        if row_keys:
            asked.append(self.rows.read(row_keys))
        answers = list(await self._together(*asked))
        rows_read = answers.pop() if row_keys else []
        found: list[list[str] | None] = [None] * len(members)
        for numbers, answer in zip(places.values(), answers, strict=True):
            for number, children in zip(numbers, answer, strict=True):
                found[number] = children
        return found, rows_read

    async def _fan_out(self, climb: Climb, report: BatchReport) -> None:
        """Hot parents: their children's bundles are rebuilt by the dirty lane, so that they delay nobody here."""
        hot: list[tuple[Node, int, str, bool]] = list(climb.hot)
        while hot:
            node, relation, link, for_text = hot.pop()
            keys = await self.relations.all_members(relation, link)
            for chunk in _chunks(keys, self.limits.chunk_keys):
                further = Climb(self.plan)
                for key in chunk:
                    further.touched(node, key, for_text)
                await self._climb(further, report)
                hot += further.hot
                keys_found = [*further.keys, *(UnitKey(TEXT_UNIT, key) for key in further.texts)]
                report.fan_out += _chunks(keys_found, self.limits.chunk_keys)

    async def _assemble(
        self,
        keys: Sequence[UnitKey],
        report: BatchReport,
        owed: Sequence[Step] = (),
        known: Mapping[RowKey, Values | None] | None = None,
    ) -> None:
        """Increment first, read second: build n holds every row whose increment came before n. `known` rows tell what
        deeper levels will need; they are read all the same, because what counts is what lies there now."""
        if owed and not keys:
            await self._in_order(owed, report)
        for chunk in _chunks(keys, self.limits.assembly_keys):
            assembly = Assembly(self.plan, chunk)
            wanted = assembly.needed()
            if known and len(chunk) <= self.limits.foresight_keys:
                wanted = foresee(self.plan, chunk, known)
            steps: list[Step] = [*owed, partial(self.bundles.mark_dirty, chunk), partial(self._read, *wanted)]
            owed = ()
            *_, counters, read = await self._in_order(steps, report)
            await self._supply(assembly, dict(zip(wanted[0], read[0], strict=True)), _views(wanted[1], read[1]), report)
            items = []
            for (key, meta, body), counter in zip(assembly.render(), counters, strict=True):
                items.append((key, Stored(counter, meta, body)))
                report.bundles_written += not key.unit
                report.fragments_written += bool(key.unit)
            report.times.assembled = self._now_us()
            await self.bundles.put(items)
            report.times.stored = self._now_us()
            report.round_trips += 1
            if self._embeds:
                report.texts_wanted.update((key.key, None) for key in chunk if not key.unit)

    async def _supply(
        self,
        assembly: Assembly,
        found: dict[RowKey, StoredRow | None],
        views: dict[tuple[int, str], RelationView],
        report: BatchReport,
    ) -> None:
        """Gives the assembly what it needs, level by level: from what is there, else from the stores."""
        while True:
            row_keys, reads = assembly.needed()
            if not row_keys and not reads:
                return
            missing = [key for key in row_keys if key not in found]
            missing_reads = [read for read in reads if (read.relation, read.parent) not in views]
            if missing or missing_reads:
                rows_read, views_read = await self._read(missing, missing_reads)
                report.round_trips += 1
                found.update(zip(missing, rows_read, strict=True))
                views.update(_views(missing_reads, views_read))
            assembly.supply([found[key] for key in row_keys], [views[read.relation, read.parent] for read in reads])

    async def _read(
        self, row_keys: list[RowKey], reads: list[RelationRead]
    ) -> tuple[list[StoredRow | None], list[RelationView]]:
        """Rows and relations of one level are asked at once."""
        if not row_keys or not reads:
            return (await self.rows.read(row_keys) if row_keys else []), (
                await self.relations.read(reads) if reads else []
            )
        found, views = await self._together(self.rows.read(row_keys), self.relations.read(reads))
        return found, views

    async def _in_order(self, steps: Sequence[Step], report: BatchReport) -> list[Any]:
        """Carries out steps that do not need each other's answers, one before the other: in one round trip where the
        stores keep the order of asking, else each for itself. One that fails fails all; the batch comes again."""
        if self._ordered_stores and len(steps) > 1:
            report.round_trips += 1
            return list(await self._together(*[step() for step in steps]))
        report.round_trips += len(steps)
        return [await step() for step in steps]

    async def _name_affected(self, report: BatchReport) -> None:
        """Adds to each dead letter the root keys whose bundles now lack it, as far as the record and its row tell. Some
        at once: a batch of nothing but broken records must not hold up the others for a round trip each."""
        named: list[DeadLetter] = []
        for letters in _chunks(report.dead_letters, LETTERS_AT_ONCE):
            named += await self._together(*[self._affected(letter) for letter in letters])
        report.dead_letters = named

    async def _affected(self, letter: DeadLetter) -> DeadLetter:
        limits = self.limits
        found = await affected_by(
            self.plan, self.rows, self.relations, letter.record, limits.dead_letter_keys_max,
            limits.parent_children_max, compared=False,
        )  # fmt: skip
        return DeadLetter(letter.record, letter.reason, letter.digest, found.keys) if found.keys else letter


def _split_at_truncations(changes: Iterable[Change | Truncation]) -> list[list[Change] | Truncation]:
    parts: list[list[Change] | Truncation] = []
    for change in changes:
        if isinstance(change, Truncation):
            parts.append(change)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(change)
        else:
            parts.append([change])
    return parts


def _views(reads: Sequence[RelationRead], views: Sequence[RelationView]) -> dict[tuple[int, str], RelationView]:
    return {(read.relation, read.parent): view for read, view in zip(reads, views, strict=True)}


Item = TypeVar("Item")


def _chunks(items: Sequence[Item], size: int) -> list[list[Item]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
