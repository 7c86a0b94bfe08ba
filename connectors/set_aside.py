"""Rows that a connector could not bring to Kafka: the letter that says why, in the source's dead-letter topic."""

from __future__ import annotations

import msgspec

from connectors.source import SourceRecord
from pipeline.core import metrics
from schemas.topics import dead_letter_topic

KEY_BYTES_MAX = 4096


class SetAside(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A letter on the wire, JSON. `topic` is where the row would have gone; `lsn` its place in the source's log, 0 for
    a snapshot's; `size` its bytes where it was too large; `row` its values' first bytes, base64, by column.
    """

    reason: str
    topic: str
    key: str | None = None
    table: str = ""
    lsn: int = 0
    size: int = 0
    row: dict[str, str | None] = {}


_LETTERS = msgspec.json.Decoder(SetAside)


def letter_record(source: str, letter: SetAside, key: bytes) -> SourceRecord:
    """The letter as a record, and counted."""
    metrics.connector_set_aside.labels(source).inc()
    return SourceRecord(dead_letter_topic(source), key[:KEY_BYTES_MAX], msgspec.json.encode(letter))


def decode_set_aside(value: bytes | None) -> SetAside:
    """Raises ValueError on bytes that no connector wrote."""
    try:
        return _LETTERS.decode(value or b"")
    except msgspec.DecodeError as error:
        raise ValueError(f"not a letter of a connector: {error}") from error
