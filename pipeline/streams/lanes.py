"""Between Kafka and the agents: per partition a buffer of records, and at most one batch that is out for processing.

No Faust and no Kafka in here: this is the part of the commit rule that can be reasoned about alone. A partition's
batches go out one after the other, so `finished` (what may be committed) is where the last finished batch ended.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from schemas.record import Record

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """A batch holds at most `batch_records_max` records and about `batch_bytes_max` bytes, but always one record,
    however big. A lane with `lane_bytes_max` bytes or `lane_records_max` records is not fetched until it has room."""

    batch_records_max: int = 1000
    batch_bytes_max: int = 1 << 20
    lane_records_max: int = 4000
    lane_bytes_max: int = 4 << 20


class BatchState(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    DROPPED = "dropped"


class RecordBatch:
    """The records of one partition, in order, for one handler.

    The handler calls `begin` (False: the partition has gone to somebody else, forget the batch), then `finish` after
    the durable writes, nothing else does; and `release` when nothing of it runs any more, finished or not. `in_outage`
    tells that the handler only waits for a store or the broker to come back: it may be interrupted without harm.
    """

    __slots__ = ("_interrupt", "_on_change", "in_outage", "next_offset", "partition", "records", "released", "state")

    def __init__(
        self, partition: Partition, records: list[Record], next_offset: int, on_change: Callable[[RecordBatch], None]
    ) -> None:
        self.partition, self.records, self.next_offset = partition, records, next_offset
        self.state = BatchState.WAITING
        self.in_outage = False
        self.released = False
        self._on_change = on_change
        self._interrupt: Callable[[], object] | None = None

    def begin(self, interrupt: Callable[[], object] | None = None) -> bool:
        """True: process it. `interrupt` must make the handler give up soon, e.g. cancel its task."""
        if self.state is not BatchState.WAITING:
            return False
        self.state, self._interrupt = BatchState.RUNNING, interrupt
        self._on_change(self)
        return True

    def finish(self) -> None:
        """The batch is durable, and so is all that it led to. A dropped batch stays dropped."""
        if self.state is BatchState.RUNNING:
            self.state = BatchState.FINISHED
            self._on_change(self)

    def release(self) -> None:
        """Nothing of this batch runs any more; without `finish` before it, it comes again."""
        if not self.released:
            self.released = True
            self._on_change(self)

    def interrupt(self) -> None:
        """Asks the handler to give up; once only, so that its cleaning up is not disturbed."""
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            interrupt()

    def drop(self) -> None:
        """The batch will be read again, here or elsewhere: its end counts for nothing."""
        if self.state is not BatchState.FINISHED:
            self.state = BatchState.DROPPED


class Lane:
    """One assigned partition since it was placed at `start`, the offset of the first record wanted."""

    def __init__(self, partition: Partition, start: int, limits: LaneLimits) -> None:
        self.partition, self.limits = partition, limits
        self.expected = start
        """The offset that the next fetched record has, unless there is a gap."""
        self.finished = start
        """Everything below is done; what may be marked and committed."""
        self.committed: int | None = None
        self.out: RecordBatch | None = None
        self._buffer: deque[Record] = deque()
        self._bytes = 0

    @property
    def full(self) -> bool:
        return self._bytes >= self.limits.lane_bytes_max or len(self._buffer) >= self.limits.lane_records_max

    @property
    def idle(self) -> bool:
        return self.out is None and not self._buffer

    def extend(self, records: Sequence[Record]) -> None:
        """Takes fetched records, in offset order."""
        if records:
            self._buffer.extend(records)
            self._bytes += sum(map(_size, records))
            self.expected = records[-1].offset + 1

    def reached(self, position: int) -> None:
        """The consumer stands at `position`. When idle, what lies between is a gap (compaction, transactions): done."""
        if position > self.expected:
            self.expected = position
        if self.idle and position > self.finished:
            self.finished = position

    def cut(self, on_change: Callable[[RecordBatch], None]) -> RecordBatch | None:
        """The next batch, or None while one is out or nothing is there."""
        if self.out is not None or not self._buffer:
            return None
        count = size = 0
        for record in islice(self._buffer, self.limits.batch_records_max):
            grown = size + _size(record)
            if count and grown > self.limits.batch_bytes_max:
                break
            count, size = count + 1, grown
        records = [self._buffer.popleft() for _ in range(count)]
        self._bytes -= size
        self.out = RecordBatch(self.partition, records, records[-1].offset + 1, on_change)
        return self.out

    def settle(self) -> bool:
        """Notes the end of the batch that is out; True when the next one may go."""
        batch = self.out
        if batch is None or batch.state is not BatchState.FINISHED:
            return False
        self.finished, self.out = batch.next_offset, None
        return True

    def discard(self) -> RecordBatch | None:
        """Forgets what is buffered, and a batch that nobody has begun; returns the one that is running, if any."""
        self._buffer.clear()
        self._bytes = 0
        if self.out is not None and self.out.state is BatchState.WAITING:
            self.out.drop()
            self.out = None
        return self.out


def _size(record: Record) -> int:
    return len(record.key or b"") + len(record.value or b"")
