"""The publisher's limits."""

from __future__ import annotations

import pytest

from connectors.publisher import RECORD_OVERHEAD_BYTES, KafkaSettings, record_bytes_max
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
