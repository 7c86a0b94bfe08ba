"""What an author of a connector writes with: changes of a table as records in our envelope, which contexts read.

The records hold whole rows, as those of Postgres do. A source whose changes are single cells writes mutations instead
(schemas/mutation.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from connectors.source import EVERY_PARTITION, SourceRecord
from schemas.envelope import encode
from schemas.event import ChangeEvent, Operation, Row, version_of
from schemas.topics import HEARTBEAT_PREFIX, table_topic

Order = tuple[int, int]
"""Of changes of one row: the greater one is newer, whenever it arrives. Each part 0 ≤ n < 2⁶⁴."""


class TableRecords:
    """Records of one table, whose name has two parts (`shop.items`), as everywhere in ctxpipe.

    Values are those of JSON; decimals travel as text, times as ISO 8601 in UTC.
    """

    def __init__(self, source: str, table: str, database: str = "") -> None:
        self.topic = table_topic(source, table)
        self._source = source
        self._table = table
        self._database = database

    def snapshot_row(self, key: Row, row: Row, order: Order, time_us: int) -> list[SourceRecord]:
        """A row as it stood at `order`; says nothing of what came before, so it does not move a watermark."""
        return self._records(Operation.SNAPSHOT, key, row, order, time_us)

    def written(self, key: Row, row: Row, order: Order, time_us: int, *, new: bool = False) -> list[SourceRecord]:
        """The whole row after a change; `new` when the source says that it did not exist before."""
        return self._records(Operation.CREATE if new else Operation.UPDATE, key, row, order, time_us)

    def deleted(self, key: Row, order: Order, time_us: int) -> list[SourceRecord]:
        """A delete, and the tombstone that lets Kafka forget the key one day."""
        return self._records(Operation.DELETE, key, None, order, time_us)

    def truncated(self, order: Order, time_us: int) -> SourceRecord:
        """All rows older than `order` are gone; the runtime's consumers apply it once."""
        (encoded,) = encode(
            self._event(Operation.TRUNCATE, None, None, order, time_us, None), self._database, _now_ms()
        )
        return SourceRecord(self.topic, encoded.key, encoded.value, partition=0)

    def heartbeat(self, order: Order, until_us: int) -> SourceRecord:
        """Says that everything which the source had committed by `until_us` has been published before it."""
        event = self._event(Operation.MESSAGE, None, None, order, until_us, (HEARTBEAT_PREFIX, b""))
        (encoded,) = encode(event, self._database, _now_ms())
        return SourceRecord(self.topic, encoded.key, encoded.value, partition=EVERY_PARTITION)

    def _records(
        self, operation: Operation, key: Row, row: Row | None, order: Order, time_us: int
    ) -> list[SourceRecord]:
        event = self._event(operation, key, row, order, time_us, None)
        snapshot = "true" if operation is Operation.SNAPSHOT else "false"
        encoded = encode(event, self._database, _now_ms(), snapshot=snapshot)
        return [SourceRecord(self.topic, one.key, one.value, one.headers) for one in encoded]

    def _event(
        self,
        operation: Operation,
        key: Row | None,
        row: Row | None,
        order: Order,
        time_us: int,
        message: tuple[str, bytes] | None,
    ) -> ChangeEvent:
        return ChangeEvent(
            source=self._source,
            table=self._table,
            operation=operation,
            key=key,
            row=row,
            version=version_of(*order),
            commit_time_us=time_us,
            message=message,
        )


def size_of(records: Sequence[SourceRecord]) -> int:
    """Bytes for Batch.bytes_total."""
    return sum(len(record.key) + len(record.value or b"") for record in records)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
