"""Follows the log of one table: chooses windows, reads all groups of a window at once, puts records into the outbox.

Progress moves when records are handed over (outbox.Item.advance), never when they are read: a position tells only what
came before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from connectors.scylla.config import US, ScyllaConfig
from connectors.scylla.decoding import Change
from connectors.scylla.generations import Generations, Told
from connectors.scylla.log_reader import LogReader, Unreadable
from connectors.scylla.messages import gone, lost, reset_hint
from connectors.scylla.outbox import Item, Outbox
from connectors.scylla.progress import TableProgress
from connectors.scylla.streams import Group, following, shared
from connectors.scylla.windows import Sight, Window, log_start, next_window, verdict
from connectors.set_aside import letter_record
from connectors.source import EVERY_PARTITION, SourceRecord
from pipeline.core.clock import Clock
from pipeline.core.errors import Fatal, PositionLost
from schemas.mutation import MutationSource, encode_heartbeat, encode_mutation

log = logging.getLogger(__name__)

Floor = Callable[[str], int | None]
"""Of a table: up to when all other processes have published everything; None when that is not known."""


class TableReader:
    """`run` goes on until it is cancelled; what ends it otherwise is raised."""

    def __init__(
        self,
        config: ScyllaConfig,
        reader: LogReader,
        generations: Generations,
        progress: TableProgress,
        outbox: Outbox,
        clock: Clock,
        log_ttl_s: int,
        others: Floor | None = None,
        complete: Callable[[], bool] = lambda: True,
    ) -> None:
        self._config = config
        self._reader = reader
        self._generations = generations
        self._progress = progress
        self._outbox = outbox
        self._clock = clock
        self._log_ttl_s = log_ttl_s
        self._others = others
        self._complete = complete
        self._told: Told | None = None
        self._read_us = progress.until_us
        self._generation_ms = progress.generation_ms
        self._groups: tuple[int, tuple[Group, ...]] | None = None
        self._beat_s = -1e9
        self._beat_us = 0
        self._static_rows = 0
        self.table = reader.table.table
        self._topic = config.topic(self.table)
        self._source = MutationSource("scylla", config.name, config.keyspace, self.table)

    async def run(self) -> None:
        while True:
            window, told = await self._next_window()
            if window is None:
                await self._clock.sleep(self._config.idle_pause_s)
                continue
            self._require_readable(told)
            count = await self._read(window)
            await self._end(window, told)
            if window.caught_up:
                await self._clock.sleep(self._config.pause_s if count else self._config.idle_pause_s)

    async def _next_window(self) -> tuple[Window | None, Told]:
        """Asks for generations again when the window would reach beyond what is known: they are announced before
        their time, so that none is overlooked."""
        told = self._told
        if told is None or self._clock.now_us() + told.clock_us - self._config.confidence_us > told.seen_us:
            told = self._told = await self._generations.told(self.table)
            if told.log_id is None:
                raise Fatal(gone(self._config, self.table))
            if told.log_id != self._progress.id:
                what = f"The log of {self._config.keyspace}.{self.table} was dropped and made anew."
                raise PositionLost(what + reset_hint(self._config))
        sight = Sight(
            self._now_us(told),
            told.seen_us,
            self._config.confidence_us,
            int(self._config.window_s * US),
            told.generations_ms,
        )
        return next_window(self._read_us, self._generation_ms, sight), told

    def _now_us(self, told: Told) -> int:
        """By the server's clock: ours may be fast, and would read a time for which writes are still to come."""
        return self._clock.now_us() + told.clock_us

    def _require_readable(self, told: Told) -> None:
        oldest = log_start(self._now_us(told), self._log_ttl_s)
        found = verdict(self._read_us, self._generation_ms, told.generations_ms, oldest)
        if found != "readable":
            raise lost(self._config, self.table, found, (oldest - self._read_us) // US)

    async def _read(self, window: Window) -> int:
        if self._groups is None or self._groups[0] != self._generation_ms:
            groups = await self._generations.groups(self.table, self._generation_ms)
            mine = shared(groups, self._config.shard.number, self._config.shard.of)
            self._groups = self._generation_ms, mine
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = [tasks.create_task(self._read_group(group, window)) for group in self._groups[1]]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the others were ended by it, or say the same
        return sum(task.result() for task in reading)

    async def _read_group(self, group: Group, window: Window) -> int:
        progress, count = self._progress, 0
        start_us = max(window.start_us, progress.ahead.get(group.key, 0))
        if start_us < window.end_us:
            async for page in self._reader.read(group, start_us, window.end_us):
                new = [change for change in page if not progress.delivered(change.stream, change.time)]
                count += len(new)
                await self._put(new)
        key, streams, end_us = group.key, group.streams, max(start_us, window.end_us)
        await self._outbox.put(Item([], 0, lambda: progress.group_ended(key, streams, end_us)))
        return count

    async def _put(self, changes: Sequence[Change | Unreadable]) -> None:
        records: list[SourceRecord] = []
        ends: dict[bytes, bytes] = {}
        newest = 0
        now_ms = self._clock.now_us() // 1000
        for change in changes:
            if isinstance(change, Unreadable):
                records.append(letter_record(self._config.name, change.letter, change.time))
            else:
                newest = max(newest, change.ts)
                self._note_static(change)
                for mutation in change.mutations:
                    key, value = encode_mutation(self._source, change.key, mutation, now_ms)
                    records.append(SourceRecord(self._topic, key, value))
            if change.end_of_batch:
                ends[change.stream] = change.time
        if records or ends:
            progress = self._progress
            size = sum([len(record.value or b"") for record in records])

            def advance() -> None:
                for stream, time in ends.items():
                    progress.batch_ended(stream, time)

            await self._outbox.put(Item(records, size, advance, newest))

    def _note_static(self, change: Change) -> None:
        if change.static and not self._static_rows:
            name = f"{self._config.keyspace}.{self.table}"
            log.warning("%s: changes of static columns are not captured; the others of the table are.", name)
        self._static_rows += change.static

    async def _end(self, window: Window, told: Told) -> None:
        """After all groups: the floor of the table moves, and once in a while that is told."""
        following_ms = following(told.generations_ms, self._generation_ms) if window.ends_generation else None
        progress, end = self._progress, window
        due = self._clock.monotonic_s() - self._beat_s >= self._config.heartbeat_interval_s
        records = self._heartbeat(window.end_us) if due and self._complete() else []
        if due:
            self._beat_s = self._clock.monotonic_s()
        steady = due or following_ms is not None
        await self._outbox.put(Item(records, 0, lambda: progress.window_ended(end, following_ms), steady=steady))
        self._read_us = window.end_us
        if following_ms is not None:
            log.info("%s: from the generation of %d ms to that of %d ms", self.table, self._generation_ms, following_ms)
            self._generation_ms = following_ms

    def _heartbeat(self, until_us: int) -> list[SourceRecord]:
        """Several processes share a table's streams: then the slowest of them decides, and the first one tells."""
        if self._config.shard.of > 1:
            others = self._others(self.table) if self._others is not None else None
            until_us = 0 if others is None else min(until_us, others)
        if until_us <= self._beat_us:
            return []
        self._beat_us = until_us
        key, value = encode_heartbeat(self._source, until_us, self._clock.now_us() // 1000)
        return [SourceRecord(self._topic, key, value, partition=EVERY_PARTITION)]
