"""Rows in Redis: one hash per table and bucket. See RowStore and functions.lua."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.stores.redis_client import Call, RedisClient
from pipeline.stores.store import RowOutcome, RowWrite, StoredRow

_ENCODE = msgspec.msgpack.Encoder().encode
_BIG_INTEGER = 1


class Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row as it lies in its hash; `state` of wide-column rows only, with the token that names it at its end."""

    commit_time_us: int
    values: list[Any]
    state: bytes = b""


_DECODE = msgspec.msgpack.Decoder(Body, ext_hook=lambda code, data: int(bytes(data))).decode
_DECODE_LINKS = msgspec.msgpack.Decoder(tuple[str | None, ...]).decode
_NOTHING = Body(0, [])
_VERSION_LENGTH = 32
_SCAN_COUNT = 1000
_CHANGED = RowOutcome(True, [])
_UNCHANGED = RowOutcome(False, [])


class RedisRows:
    """See RowStore."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client

    async def apply(self, writes: Sequence[RowWrite]) -> list[RowOutcome]:
        groups: dict[tuple[str, int], tuple[list[int], list[Any]]] = {}
        bucket_of = self.client.bucket
        for number, write in enumerate(writes):
            group = groups.setdefault((write.table, bucket_of(write.key)), ([], []))
            group[0].append(number)
            body = b"" if write.values is None else encode_body(write.commit_time_us, write.values)
            group[1].extend((write.key, write.version, encode_links(write.links), body))
        calls: list[Call] = [("apply", self._keys(*group), arguments) for group, (_, arguments) in groups.items()]
        outcomes = [_UNCHANGED] * len(writes)
        for (numbers, _), answers in zip(groups.values(), await self.client.call(calls), strict=True):
            for number, answer in zip(numbers, answers, strict=True):
                if answer.__class__ is bytes:
                    outcomes[number] = RowOutcome(True, former_links(answer)) if answer else _CHANGED
        return outcomes

    async def read(self, keys: Sequence[tuple[str, str]]) -> list[StoredRow | None]:
        groups: dict[tuple[str, int], tuple[list[int], list[str]]] = {}
        bucket_of = self.client.bucket
        for number, (table, key) in enumerate(keys):
            group = groups.setdefault((table, bucket_of(key)), ([], []))
            group[0].append(number)
            group[1].append(key)
        calls: list[Call] = [("rows", self._keys(*group), names) for group, (_, names) in groups.items()]
        rows: list[StoredRow | None] = [None] * len(keys)
        for (numbers, _), values in zip(groups.values(), await self.client.call(calls), strict=True):
            floor = values.pop()
            for number, value in zip(numbers, values, strict=True):
                if value is not None:
                    rows[number] = _row(value)
                elif floor is not None:
                    rows[number] = StoredRow(floor.decode(), 0, [])
        return rows

    async def truncate(self, table: str, version: str) -> list[str]:
        buckets = range(self.client.settings.buckets)
        await self.client.call([("floor", self._keys(table, bucket), [version]) for bucket in buckets])
        found = []
        for bucket in buckets:
            cursor = 0
            while True:
                name = self._keys(table, bucket)[0]
                cursor, flat = await self.client.run("HSCAN", name, cursor, "COUNT", _SCAN_COUNT)
                pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
                for key, value in pairs:
                    row = _row(value)
                    if (row.live and row.version < version) or (not row.live and row.version == version):
                        found.append(key.decode())
                cursor = int(cursor)
                if cursor == 0:
                    break
        return found

    def _keys(self, table: str, bucket: int) -> list[str]:
        return [self.client.key(bucket, f"r:{table}"), self.client.key(bucket, f"f:{table}")]


def encode_links(links: tuple[str | None, ...]) -> bytes:
    """Empty for a row that stands nowhere."""
    return _ENCODE(links) if links else b""


def encode_body(*parts: Any) -> bytes:
    """Commit time, values and, of a wide-column row, its state."""
    try:
        return _ENCODE(parts)
    except OverflowError:
        return _ENCODE(_extended(list(parts)))


def _extended(value: Any) -> Any:
    """Integers of more than 64 bits, which JSON may hold, as text in an extension of MessagePack."""
    if isinstance(value, list):
        return [_extended(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _extended(inner) for name, inner in value.items()}
    if value.__class__ is int and not -(1 << 63) <= value < 1 << 64:
        return msgspec.msgpack.Ext(_BIG_INTEGER, str(value).encode())
    return value


def _row(value: bytes) -> StoredRow:
    body = body_of(value)
    return StoredRow(value[:_VERSION_LENGTH].decode(), body.commit_time_us if body.values else 0, body.values)


def body_of(value: bytes) -> Body:
    """The body of a stored row; a deleted one has none."""
    (former,) = struct.unpack_from(">I", value, _VERSION_LENGTH)
    start = _VERSION_LENGTH + 4 + former
    (links,) = struct.unpack_from(">I", value, start)
    start += 4 + links
    return _DECODE(value[start:]) if len(value) > start else _NOTHING


def former_links(blob: bytes) -> list[tuple[str | None, ...]]:
    links, start = [], 0
    while start < len(blob):
        (length,) = struct.unpack_from(">I", blob, start)
        links.append(_DECODE_LINKS(blob[start + 4 : start + 4 + length]))
        start += 4 + length
    return links
