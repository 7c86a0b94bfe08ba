"""The publisher's limits."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from connectors.publisher import RECORD_OVERHEAD_BYTES, KafkaSettings, Publisher, TopicPlan, record_bytes_max
from connectors.source import SourceRecord
from schemas.errors import DecodeError
from schemas.record import Record
from schemas.wire import SIZE_MAX, parse


def test_what_is_published_is_read() -> None:
    """A longer row would lie in the topic, and every worker would set it aside."""
    ours = KafkaSettings(bootstrap_servers="h:1").message_bytes_max
    assert record_bytes_max(ours) == record_bytes_max(64 << 20) == SIZE_MAX
    assert record_bytes_max(1_000_000) == 1_000_000 - RECORD_OVERHEAD_BYTES
    longest = b'{"op":"c","source":{}}'.ljust(SIZE_MAX)
    assert parse(Record("t", 0, 0, b"", longest)) is not None
    with pytest.raises(DecodeError, match="more than the limit"):
        parse(Record("t", 0, 0, b"", longest + b" "))


class KeptLane:
    """Keeps what it is given."""

    open = None

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []

    def append(self, key: bytes, value: bytes | None, _headers: object) -> Any:
        self.records.append((key, value))
        return self

    def go(self) -> None: ...

    @property
    def done(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


async def test_a_delete_that_is_too_large_goes_without_its_row() -> None:
    """Set aside, it would leave the row it deletes in every bundle for ever."""
    publisher = Publisher("src", KafkaSettings(bootstrap_servers="h:1"), TopicPlan(["t"]))
    lanes: dict[str, Any] = {"t": [KeptLane()], "ctxpipe.src.dead-letter": [KeptLane()]}
    publisher._lanes, publisher._record_bytes_max = lanes, {"t": 100, "ctxpipe.src.dead-letter": 10_000}
    await publisher.publish(
        [
            SourceRecord("t", b"1", b"x" * 200, smaller=b"{}"),
            SourceRecord("t", b"2", b"x" * 200),
            SourceRecord("t", b"3", b"x" * 200, smaller=b"y" * 100),
            SourceRecord("t", b"4", b"x" * 50, smaller=b"{}"),
        ]
    )
    assert lanes["t"][0].records == [(b"1", b"{}"), (b"4", b"x" * 50)]
    letters = [msgspec.json.decode(value) for _, value in lanes["ctxpipe.src.dead-letter"][0].records]
    assert [letter["key"] for letter in letters] == ["2", "3"] and publisher.dead_letter_count == 2
