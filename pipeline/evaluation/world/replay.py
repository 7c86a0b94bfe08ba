"""A log through the production flow into memory: as it stands, and told in the other ways that must end the same.

No worker, broker or clock is here: batches, crashes and what is committed are decided by a seed, so that a run is a
pure function of the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pipeline.flow import Flow, FlowLimits
from pipeline.merging import Merging
from pipeline.plan import Plan
from pipeline.report import BatchReport
from pipeline.stores.memory import MemoryBundles, MemoryCells, MemoryRelations, MemoryRows
from pipeline.stores.store import AppliedPosition, Partition
from schemas.bundle import ROOT_UNIT, Stored, UnitKey
from schemas.record import Record

BATCH_RECORDS = 7
"""Of the log as it stands: small, so that a bundle is built again and again while its rows come."""
BATCH_RECORDS_MAX = 50
TAIL_RECORDS_MAX = 6
UNCOMMITTED_RECORDS_MAX = 8
COMMITTED_SHARE = 0.3
OFFSETS_MAX = 200
"""Up to so many records a crash comes at every one of them, else at so many, evenly spread."""
STORE_CALLS_MAX = 12
"""A small batch has about eight; a crash beyond its last one comes after it, before the commit."""
EXPIRY_ROWS, EXPIRY_ROUNDS_MAX = 1_000, 10_000

Letter = tuple[str, int, int, str]
"""Topic, partition, offset, reason."""


@dataclass(frozen=True)
class Replayed:
    """What the stores hold after the log. `rows`: keys of the root's rows, live or deleted; `letters`: records set
    aside, each once, however often it came."""

    values: Mapping[UnitKey, Stored]
    rows: frozenset[str]
    letters: frozenset[Letter]
    applied: Mapping[Partition, AppliedPosition]


@dataclass
class Memory:
    """What outlives a process: stores, the dirty topic, the dead letters."""

    rows: MemoryRows = field(default_factory=MemoryRows)
    relations: MemoryRelations = field(default_factory=MemoryRelations)
    bundles: MemoryBundles = field(default_factory=MemoryBundles)
    dirty: list[list[UnitKey]] = field(default_factory=list)
    letters: set[Letter] = field(default_factory=set)
    applied: dict[Partition, AppliedPosition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cells = MemoryCells(self.rows)


class _Crash(BaseException):
    """The process is gone; nothing catches it but the one who starts the next."""


class _Mortal:
    """A store whose user dies at one of its calls: before it is carried out, or after."""

    def __init__(self, store: Any, life: _Life) -> None:
        self._store, self._life = store, life

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        async def call(*arguments: Any) -> Any:
            self._life.step()
            found = await method(*arguments)
            self._life.step()
            return found

        return call


class _Life:
    """Ends at the given step; None: never."""

    def __init__(self, steps: int | None) -> None:
        self._left = steps

    def step(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise _Crash


class Process:
    """One run of a worker over a memory that others had before it. `now_us`: the end of the log, in every telling."""

    def __init__(
        self,
        plan: Plan,
        memory: Memory,
        now_us: int,
        limits: FlowLimits | None = None,
        in_order: bool = False,
        dies_at_step: int | None = None,
    ) -> None:
        self.memory = memory
        life = _Life(dies_at_step)
        stores: list[Any] = [memory.rows, memory.relations, memory.bundles, memory.cells]
        if dies_at_step is not None:
            stores = [_Mortal(one, life) for one in stores]
        rows, relations, bundles, cells = stores
        merging = Merging(plan, cells, lambda: now_us)
        self._flow = Flow(plan, rows, relations, bundles, limits, _one_by_one, in_order, merging)
        self._now_us = now_us

    async def batch(self, records: Sequence[Record]) -> None:
        report = await self._flow.process(records)
        self._note(report)
        for letter in report.dead_letters:
            record = letter.record
            self.memory.letters.add((record.topic, record.partition, record.offset, letter.reason))
        for partition, position in report.applied.items():
            self.memory.applied[partition] = position.after(self.memory.applied.get(partition))

    async def rebuild(self) -> None:
        """What lies in the dirty topic."""
        while self.memory.dirty:
            self._note(await self._flow.rebuild(self.memory.dirty[0]))
            del self.memory.dirty[0]

    async def settle(self) -> None:
        """The dirty topic to its end, and out of wide-column rows what had lived its time at the end of the log."""
        await self.rebuild()
        for _ in range(EXPIRY_ROUNDS_MAX):
            if not await self.memory.cells.due(self._now_us, 1):
                return
            self._note(await self._flow.expire(EXPIRY_ROWS))
            await self.rebuild()
        raise RuntimeError("rows that have lived their time stay due, however often they are taken out")

    def _note(self, report: BatchReport) -> None:
        self.memory.dirty += report.fan_out


async def straight(plan: Plan, log: Sequence[Record]) -> Replayed:
    """The log as it stands, in batches."""
    records, memory, now_us = _begin(plan, log)
    process = Process(plan, memory, now_us)
    for batch in _batches(records, BATCH_RECORDS):
        await process.batch(batch)
        await process.rebuild()
    return await _end(plan, process)


async def redelivered(plan: Plan, log: Sequence[Record], random: Random) -> Replayed:
    """After every batch the newest records of each of its partitions come again, and in the end the whole log."""
    records, memory, now_us = _begin(plan, log)
    process = Process(plan, memory, now_us)
    so_far: dict[Partition, list[Record]] = {}
    for batch in _batches(records, random.randint(1, BATCH_RECORDS_MAX)):
        await process.batch(batch)
        for record in batch:
            so_far.setdefault((record.topic, record.partition), []).append(record)
        for partition in sorted({(record.topic, record.partition) for record in batch}):
            await process.batch(so_far[partition][-random.randint(1, TAIL_RECORDS_MAX) :])
        await process.rebuild()
    for batch in _batches(records, BATCH_RECORDS_MAX):
        await process.batch(batch)
    return await _end(plan, process)


async def reordered(plan: Plan, log: Sequence[Record], random: Random) -> Replayed:
    """Partitions run ahead of each other as they like, each in its own order; batches have other sizes, hot parents
    go through the dirty topic, which is read late."""
    records, memory, now_us = _begin(plan, log)
    limits = FlowLimits(
        parent_children_max=random.choice([1, 3, 1000]),
        chunk_keys=random.choice([2, 500]),
        assembly_keys=random.choice([5, 4000]),
        foresight_keys=random.choice([0, 5, 250]),
    )
    process = Process(plan, memory, now_us, limits, in_order=random.random() < 0.5)
    waiting: dict[Partition, list[Record]] = {}
    for record in reversed(records):
        waiting.setdefault((record.topic, record.partition), []).append(record)
    while waiting:
        batch: list[Record] = []
        for partition in random.sample(sorted(waiting), min(len(waiting), random.choice([1, 1, 2]))):
            for _ in range(min(len(waiting[partition]), random.choice([1, 2, 7, BATCH_RECORDS_MAX]))):
                batch.append(waiting[partition].pop())
            if not waiting[partition]:
                del waiting[partition]
        await process.batch(batch)
        if random.random() < 0.5:
            await process.rebuild()
    return await _end(plan, process)


async def restarted(plan: Plan, log: Sequence[Record], random: Random) -> Replayed:
    """At every record the worker dies: between two steps of its batch, or after it and before the commit. The next one
    begins at the last commit, with what the dead one left in the stores."""
    records, memory, now_us = _begin(plan, log)
    committed = 0
    for end in _ends(len(records)):
        batch = records[committed:end]
        steps = random.randrange(2 * STORE_CALLS_MAX)
        dying = Process(plan, memory, now_us, dies_at_step=steps)
        with suppress(_Crash):
            await dying.batch(batch)
        process = Process(plan, memory, now_us)
        await process.batch(batch)
        if random.random() < COMMITTED_SHARE or end - committed >= UNCOMMITTED_RECORDS_MAX:
            committed = end
            await process.rebuild()
    return await _end(plan, Process(plan, memory, now_us))


def _begin(plan: Plan, log: Sequence[Record]) -> tuple[list[Record], Memory, int]:
    records = [record for record in log if record.topic in plan.topics]
    return records, Memory(), max((record.timestamp_ms for record in log), default=0) * 1000


async def _end(plan: Plan, process: Process) -> Replayed:
    await process.settle()
    memory = process.memory
    rows = frozenset(memory.rows.tables.get(plan.root.table.name, {}))
    return Replayed(memory.bundles.values, rows, frozenset(memory.letters), memory.applied)


def _ends(count: int) -> list[int]:
    """The ends of batches that a crash follows, ascending, the log's own among them."""
    if count <= OFFSETS_MAX:
        return list(range(1, count + 1))
    return sorted({count * number // OFFSETS_MAX for number in range(1, OFFSETS_MAX + 1)})


def _batches(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    for first in range(0, len(records), size):
        yield records[first : first + size]


async def _one_by_one(*steps: Awaitable[Any]) -> list[Any]:
    """In place of gather: memory answers at once, and no step goes on after one that failed."""
    found = []
    try:
        for step in steps:
            found.append(await step)
    finally:
        for step in steps[len(found) :]:
            close = getattr(step, "close", None)
            if close is not None:
                close()
    return found


def live_and_gone(replayed: Replayed) -> dict[str, Stored | None]:
    """By root key: the bundle, None for one whose row has been there and that has none now."""
    found: dict[str, Stored | None] = dict.fromkeys(sorted(replayed.rows))
    for key, stored in sorted(replayed.values.items()):
        if key.unit == ROOT_UNIT and not stored.deleted:
            found[key.key] = stored
    return found
