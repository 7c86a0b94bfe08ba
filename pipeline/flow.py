"""THE STORY: a batch of records becomes bundles. Agents, simulation and evaluation all call this.

decode → complete partial rows → apply → relate → find dirty keys → increment, read, assemble, put. A crash between any
two steps is harmless: the batch comes again, an equal version counts as changed, and no step undoes a newer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline import rows
from pipeline.bundle import Assembly, RowKey
from pipeline.dirty import Climb
from pipeline.plan import Node, Plan
from pipeline.relations import Links, links_of, memberships
from pipeline.report import BatchReport, DeadLetter
from pipeline.rows import Change, Truncation
from pipeline.stores.store import BundleStore, RelationRead, RelationStore, RelationView, RowStore, StoredRow
from schemas.bundle import Stored, UnitKey
from schemas.record import Record


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """Above `parent_children_max` children, a parent's change goes through the dirty topic in chunks of `chunk_keys`;
    at most `assembly_keys` units are assembled together."""

    parent_children_max: int = 1000
    chunk_keys: int = 500
    assembly_keys: int = 4000
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
    ) -> None:
        """`together` runs coroutines at once and gives their results; the simulation brings its own."""
        self.plan, self.rows, self.relations, self.bundles = plan, row_store, relation_store, bundle_store
        self.limits = limits or FlowLimits()
        self._together = together

    async def process(self, records: Sequence[Record]) -> BatchReport:
        """Applies records, each partition's in order. Raises Retryable when a store is away: same batch again."""
        decoded = rows.decode_batch(self.plan, records)
        report = BatchReport(dead_letters=decoded.dead_letters, applied=decoded.applied)
        for part in _split_at_truncations(decoded.changes):
            if isinstance(part, Truncation):
                await self._truncate(part, report)
            else:
                await self._changes(part, report)
        await self._name_affected(report)
        return report

    async def rebuild(self, keys: Sequence[UnitKey]) -> BatchReport:
        """Assembles units again from what is stored: the dirty lane."""
        report = BatchReport()
        await self._assemble(keys, report)
        return report

    async def _changes(self, changes: list[Change], report: BatchReport) -> None:
        changes = await self._complete(changes, report)
        if not changes:
            return
        report.events += len(changes)
        outcomes = await self.rows.apply([rows.write_of(change) for change in changes])
        report.round_trips += 1
        last: dict[tuple[str, str], Change] = {}
        formers: dict[tuple[str, str], list[Links]] = {}
        for change, outcome in zip(changes, outcomes, strict=True):
            if not outcome.changed:
                report.stale += 1
                continue
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
        if writes:
            await self.relations.relate(writes)
            report.round_trips += 1
        await self._climb(climb, report)
        await self._fan_out(climb, report)
        await self._assemble(list(climb.keys), report)

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

    async def _climb(self, climb: Climb, report: BatchReport) -> None:
        while True:
            members, row_keys = climb.needed()
            if not members and not row_keys:
                return
            found: list[list[str] | None] = [None] * len(members)
            for relation in dict(members):
                places = [number for number, read in enumerate(members) if read[0] == relation]
                parents = [members[number][1] for number in places]
                limit = self.limits.parent_children_max
                for number, keys in zip(places, await self.relations.members(relation, parents, limit), strict=True):
                    found[number] = keys
                report.round_trips += 1
            climb.supply(found, await self.rows.read(row_keys) if row_keys else [])
            report.round_trips += bool(row_keys)

    async def _fan_out(self, climb: Climb, report: BatchReport) -> None:
        """Hot parents: their children's bundles are rebuilt by the dirty lane, so that they delay nobody here."""
        hot: list[tuple[Node, int, str]] = list(climb.hot)
        while hot:
            node, relation, link = hot.pop()
            keys = await self.relations.all_members(relation, link)
            for chunk in _chunks(keys, self.limits.chunk_keys):
                further = Climb(self.plan)
                for key in chunk:
                    further.touched(node, key)
                await self._climb(further, report)
                hot += further.hot
                report.fan_out += _chunks(list(further.keys), self.limits.chunk_keys)

    async def _assemble(self, keys: Sequence[UnitKey], report: BatchReport) -> None:
        """Increment first, read second: build n holds every row whose increment came before n."""
        for chunk in _chunks(keys, self.limits.assembly_keys):
            counters = await self.bundles.mark_dirty(chunk)
            report.round_trips += 2
            assembly = Assembly(self.plan, chunk)
            while True:
                row_keys, reads = assembly.needed()
                if not row_keys and not reads:
                    break
                found, views = await self._read(row_keys, reads)
                report.round_trips += 1
                assembly.supply(found, views)
            items = []
            for (key, meta, body), counter in zip(assembly.render(), counters, strict=True):
                items.append((key, Stored(counter, meta, body)))
                report.bundles_written += not key.unit
                report.fragments_written += bool(key.unit)
            await self.bundles.put(items)

    async def _read(
        self, row_keys: list[RowKey], reads: list[RelationRead]
    ) -> tuple[list[StoredRow | None], list[RelationView]]:
        """One level of an assembly: rows and relations are asked at once."""
        if not row_keys or not reads:
            return (await self.rows.read(row_keys) if row_keys else []), (
                await self.relations.read(reads) if reads else []
            )
        found, views = await self._together(self.rows.read(row_keys), self.relations.read(reads))
        return found, views

    async def _name_affected(self, report: BatchReport) -> None:
        """Adds to each dead letter the root keys whose bundles now lack it, as far as its key tells."""
        if report.dead_letters:
            named = [await self._affected(letter) for letter in report.dead_letters]
            report.dead_letters = named

    async def _affected(self, letter: DeadLetter) -> DeadLetter:
        table = self.plan.topics.get(letter.record.topic)
        key = rows.key_of_record(table, letter.record) if table is not None else None
        if table is None or key is None:
            return letter
        stored = (await self.rows.read([(table.name, key)]))[0]
        climb = Climb(self.plan)
        climb.changed(table, key, links_of(table, stored.values) if stored and stored.live else (), [])
        await self._climb(climb, BatchReport())
        affected = [f"{unit.unit}:{unit.key}" if unit.unit else unit.key for unit in climb.keys]
        return DeadLetter(letter.record, letter.reason, letter.digest, affected[: self.limits.dead_letter_keys_max])


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


Item = TypeVar("Item")


def _chunks(items: Sequence[Item], size: int) -> list[list[Item]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
