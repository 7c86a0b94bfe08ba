"""What the worker writes to Kafka as values: dead letters and chunks of dirty keys, and how both are read back."""

from __future__ import annotations

import base64
import re

import msgspec

from pipeline.report import DeadLetter
from schemas.bundle import UnitKey
from schemas.record import Record

BASE64_GROWTH = 4 / 3
HEADER_VALUE_BYTES_MAX = 4096


_TEXTS = re.compile(r"ctxpipe\..+\.v\d+\.texts(-wanted$|\.)")


class Letter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dead letter on the wire, JSON; bytes are base64. Of a record too big for the topic only the first part is kept:
    `truncated` is set, and `key_bytes` and `value_bytes` tell the whole lengths (None: there was no key or value)."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    reason: str
    digest: str
    bundle_keys: list[str] = []
    headers: list[tuple[str, str]] = []
    key: str | None = None
    value: str | None = None
    key_bytes: int | None = None
    value_bytes: int | None = None
    truncated: bool = False
    failed_at_ms: int = 0


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """What is listed of a letter, of a worker's as of a connector's: all but the record itself. A connector's has
    neither `partition` nor `offset`; its `key` is text, a worker's is base64."""

    reason: str
    topic: str
    partition: int | None = None
    offset: int | None = None
    timestamp_ms: int = 0
    digest: str = ""
    bundle_keys: list[str] = []
    key: str | None = None
    key_bytes: int | None = None
    value_bytes: int | None = None
    truncated: bool = False
    failed_at_ms: int = 0
    table: str = ""
    lsn: int = 0
    size: int = 0

    @property
    def by_connector(self) -> bool:
        """The row never got to Kafka."""
        return self.partition is None

    @property
    def by_embedding(self) -> bool:
        """A text that could not be made or embedded."""
        return _TEXTS.match(self.topic) is not None

    @property
    def identity(self) -> tuple[str, int | None, int | str | None]:
        """Of letters with the same one, the newest stands for all: the same record set aside again, by a worker that
        was killed or by another version; the same row or text, whose older state matters no more."""
        if self.by_connector or self.by_embedding:
            return self.topic, None, self.key
        return self.topic, self.partition, self.offset

    @property
    def place(self) -> str:
        """Where the record is, or would be."""
        if self.by_connector:
            return f"{self.topic} {self.key or ''}".strip()
        return f"{self.topic}/{self.partition}@{self.offset}"

    @property
    def refusal(self) -> str:
        """Why a connector's letter can't be redriven, and what to do instead."""
        source, _, table = self.topic.partition(".")
        return (
            "the connector set this row aside, so Kafka does not have it and nothing can be applied. Mend what the "
            f"reason says, then change the row or let `ctxpipe connect {source} --snapshot {self.table or table}` read "
            "it again, and discard this letter"
        )


_ENCODER = msgspec.json.Encoder()
_HEADINGS = msgspec.json.Decoder(Heading)
_LETTERS = msgspec.json.Decoder(Letter)
_CHUNKS = msgspec.json.Decoder(list[UnitKey])


def encode_letter(letter: DeadLetter, bytes_max: int, now_ms: int) -> bytes:
    """The letter as JSON of at most about `bytes_max` bytes."""
    record = letter.record
    room = max(0, int((bytes_max - 2048 - len(letter.reason) * 2) / BASE64_GROWTH))
    keys = _keys_within(letter.bundle_keys, room // 4)
    room -= sum(len(key) + 4 for key in keys)
    headers = [(name, _text(value[:HEADER_VALUE_BYTES_MAX]) or "") for name, value in record.headers]
    room -= sum(len(name) + len(value) + 8 for name, value in headers)
    key_room = max(0, min(len(record.key or b""), room // 2))
    value_room = max(0, min(len(record.value or b""), room - key_room))
    cut = key_room < len(record.key or b"") or value_room < len(record.value or b"")
    return _ENCODER.encode(
        Letter(
            topic=record.topic, partition=record.partition, offset=record.offset, timestamp_ms=record.timestamp_ms,
            reason=letter.reason, digest=letter.digest, bundle_keys=keys, headers=headers,
            key=_text(record.key[:key_room] if record.key is not None else None),
            value=_text(record.value[:value_room] if record.value is not None else None),
            key_bytes=None if record.key is None else len(record.key),
            value_bytes=None if record.value is None else len(record.value),
            truncated=cut or any(len(value) > HEADER_VALUE_BYTES_MAX for _, value in record.headers),
            failed_at_ms=now_ms,
        )
    )  # fmt: skip


def decode_letter(value: bytes) -> Letter:
    """Raises ValueError on bytes that `encode_letter` did not write."""
    try:
        return _LETTERS.decode(value)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a dead letter: {error}") from error


def decode_heading(value: bytes) -> Heading:
    """Raises ValueError on bytes that are no letter of a worker or connector."""
    try:
        return _HEADINGS.decode(value)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a dead letter: {error}") from error


def original_record(letter: Letter) -> Record:
    """The record as it was read. Raises ValueError for a truncated one."""
    if letter.truncated:
        raise ValueError("only the first part of this record was kept")
    headers = tuple((name, base64.b64decode(value)) for name, value in letter.headers)
    key = None if letter.key is None else base64.b64decode(letter.key)
    value = None if letter.value is None else base64.b64decode(letter.value)
    return Record(letter.topic, letter.partition, letter.offset, key, value, letter.timestamp_ms, headers)


def encode_chunk(keys: list[UnitKey]) -> bytes:
    """Keys to rebuild, as JSON."""
    return _ENCODER.encode(keys)


def decode_chunk(value: bytes | None) -> list[UnitKey]:
    """Raises ValueError on bytes that `encode_chunk` did not write."""
    try:
        return _CHUNKS.decode(value or b"")
    except msgspec.DecodeError as error:
        raise ValueError(f"not a chunk of dirty keys: {error}") from error


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _keys_within(keys: list[str], bytes_max: int) -> list[str]:
    kept, size = [], 0
    for key in keys:
        size += len(key) + 4
        if size > bytes_max:
            break
        kept.append(key)
    return kept
