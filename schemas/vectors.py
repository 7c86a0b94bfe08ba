"""Texts and vectors as they travel: one record per bundle with all its pieces, so that they change together.

MessagePack maps, because a vector is bytes. A record without a value says that the bundle has no text in this space:
it is gone, or its text is empty or could not be made.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias, TypeVar

import msgspec

from schemas.errors import DecodeError

FilterValue: TypeAlias = str | int | float | bool | None

TEXT_HASH_BYTES = 16


class Chunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A piece of the text: characters from `start` up to `end`."""

    start: int
    end: int


class TextRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The text of one bundle. `counter` and `bundle_hash` are of the bundle that it was made from (schemas.bundle).

    `commit_time_us`: the newest change in the bundle, microseconds since 1970 UTC, 0 unknown; for freshness.
    `filters` by the spec's names; lists stand for any of their values.
    """

    space: str
    counter: int
    bundle_hash: str
    text_hash: str
    text: str
    filters: dict[str, FilterValue | list[FilterValue]] = {}
    commit_time_us: int = 0
    characters_cut: int = 0
    """How many characters the text had behind those that are here."""


class VectorRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All vectors of one bundle in one space: `vectors` is a matrix of `chunks` rows and `dimension` columns, 32-bit
    floats, little-endian, row by row, each row of length 1. `tokens_cut`: how many tokens of the text were too many
    for the model or the spec's chunk rule and are in no vector. The other fields are those of the TextRecord."""

    space: str
    counter: int
    bundle_hash: str
    text_hash: str
    dimension: int
    chunks: list[Chunk]
    vectors: bytes
    tokens_cut: int = 0
    filters: dict[str, FilterValue | list[FilterValue]] = {}
    commit_time_us: int = 0


Wire = TypeVar("Wire", TextRecord, VectorRecord)

_ENCODER = msgspec.msgpack.Encoder()
_TEXT = msgspec.msgpack.Decoder(TextRecord)
_VECTORS = msgspec.msgpack.Decoder(VectorRecord)


def hash_text(text: str) -> str:
    """BLAKE2b of the UTF-8 text, 16 bytes as hex."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=TEXT_HASH_BYTES).hexdigest()


def encode_text(record: TextRecord) -> bytes:
    return _ENCODER.encode(record)


def decode_text(value: bytes, space: str) -> TextRecord:
    """Raises DecodeError for what is no such record, or one of another space."""
    record = _decoded(_TEXT, value)
    _refuse_foreign(record.space, space)
    return record


def encode_vectors(record: VectorRecord) -> bytes:
    return _ENCODER.encode(record)


def decode_vectors(value: bytes, space: str, dimension: int) -> VectorRecord:
    """Raises DecodeError for what is no such record, one of another space, or vectors of another size."""
    record = _decoded(_VECTORS, value)
    _refuse_foreign(record.space, space)
    if record.dimension != dimension:
        raise DecodeError(f"vectors of {record.dimension} dimensions where space {space} has {dimension}")
    if not record.chunks or len(record.vectors) != 4 * dimension * len(record.chunks):
        raise DecodeError(f"{len(record.vectors)} bytes are not {len(record.chunks)} vectors of {dimension} dimensions")
    return record


def _refuse_foreign(found: str, space: str) -> None:
    if found != space:
        raise DecodeError(f"a record of space {found} where space {space} is read")


def _decoded(decoder: msgspec.msgpack.Decoder[Wire], value: bytes) -> Wire:
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(f"the record can't be read: {error}") from error
