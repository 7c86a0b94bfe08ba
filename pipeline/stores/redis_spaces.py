"""Embedding spaces in Redis: their records in one slot, what is known of each bundle's vector beside the bundle.

See SpaceStore and VectorStateStore in spaces.py, and functions.lua.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.core.clock import SystemClock
from pipeline.core.errors import Fatal
from pipeline.stores.redis_client import Call, RedisClient
from pipeline.stores.spaces import SpaceRecord, VectorState

DELETION_REMEMBERED_S = 86_400
"""As long as a deleted bundle is: its state says up to which counter late texts of it are refused."""
SCANNED_AT_ONCE = 1000
US_PER_S = 1_000_000

_ENCODER = msgspec.msgpack.Encoder()
_RECORD = msgspec.msgpack.Decoder(SpaceRecord)
_STATE = msgspec.msgpack.Decoder(VectorState)


class RedisSpaces:
    """See SpaceStore. One hash: per space its record as it was registered, and beside it what changes of it."""

    def __init__(self, client: RedisClient, now_us: Callable[[], int] | None = None) -> None:
        self.client = client
        self._now_us = now_us or SystemClock().now_us
        self._name = client.key(0, "spaces")

    async def register(self, record: SpaceRecord) -> SpaceRecord:
        await self._call("space_register", record.space, _ENCODER.encode(record), self._now_us())
        found = [one for one in await self.all() if one.space == record.space]
        return found[0]

    async def all(self) -> list[SpaceRecord]:
        fields = _pairs(await self.client.run("HGETALL", self._name))
        found = [_record(fields, name[2:]) for name in fields if name.startswith(b"r:")]
        return sorted(found, key=lambda record: (record.created_us, record.space))

    async def serving(self) -> str | None:
        value = await self.client.run("HGET", self._name, "serving")
        return None if value is None else value.decode()

    async def promote(self, space: str, instead_of: str | None, evidence: bytes) -> bool:
        return await self._call("space_promote", space, instead_of or "", evidence, self._now_us())

    async def note(self, space: str, evidence: bytes) -> None:
        await self._call("space_note", space, evidence)

    async def retire(self, space: str) -> bool:
        return await self._call("space_retire", space, self._now_us())

    async def _call(self, function: str, *arguments: Any) -> bool:
        (answer,) = await self.client.call([(function, [self._name], arguments)])
        return bool(answer)


class RedisVectorStates:
    """See VectorStateStore. Per space and bucket one hash of states, and an index of when those of deleted bundles may
    go."""

    def __init__(self, client: RedisClient, now_us: Callable[[], int] | None = None) -> None:
        self.client = client
        self._now_us = now_us or SystemClock().now_us

    async def read_states(self, space: str, keys: Sequence[str]) -> list[VectorState | None]:
        groups = self._by_bucket(keys)
        calls: list[Call] = [
            ("states", [self._states(space, bucket)], [keys[number] for number in numbers])
            for bucket, numbers in groups.items()
        ]
        found: list[VectorState | None] = [None] * len(keys)
        for numbers, answer in zip(groups.values(), await self.client.call(calls), strict=True):
            for number, value in zip(numbers, answer, strict=True):
                found[number] = None if value is None else _decoded(space, value)
        return found

    async def write_texts(self, space: str, states: Mapping[str, VectorState]) -> list[bool]:
        return await self._write("text_states", space, [(key, _ENCODER.encode(state)) for key, state in states.items()])

    async def write_vectors(
        self, space: str, hashes: Mapping[str, tuple[str, str]], offsets: Mapping[str, int] | None = None
    ) -> list[bool]:
        at = offsets or {}
        rows = [(key, *pair, at.get(key, "")) for key, pair in hashes.items()]
        return await self._write("vector_states", space, rows)

    async def write_problems(self, space: str, problems: Mapping[str, tuple[str, str]]) -> None:
        await self._write("problem_states", space, [(key, *pair) for key, pair in problems.items()])

    async def scan_states(self, space: str) -> AsyncIterator[tuple[str, VectorState]]:
        for bucket in range(self.client.settings.buckets):
            # A hash that grows meanwhile may show an entry twice; a bucket's part is small enough to be remembered.
            for key, value in (await self._scan_bucket(self._states(space, bucket))).items():
                yield key.decode(), _decoded(space, value)

    async def forget(self, space: str) -> int:
        buckets = range(self.client.settings.buckets)
        calls: list[Call] = [
            ("forget_states", [self._states(space, bucket), self._endings(space, bucket)], []) for bucket in buckets
        ]
        return sum(await self.client.call(calls))

    async def _write(self, function: str, space: str, rows: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Rows of a key and its arguments, each bucket's in one call."""
        groups = self._by_bucket([row[0] for row in rows])
        now_s = self._now_us() // US_PER_S
        calls: list[Call] = []
        for bucket, numbers in groups.items():
            flat = [part for number in numbers for part in rows[number]]
            names = [self._states(space, bucket), self._endings(space, bucket)]
            calls.append((function, names, [now_s, DELETION_REMEMBERED_S, *flat]))
        taken = [False] * len(rows)
        for numbers, answer in zip(groups.values(), await self.client.call(calls), strict=True):
            for number, flag in zip(numbers, answer, strict=True):
                taken[number] = bool(flag)
        return taken

    def _by_bucket(self, keys: Sequence[str]) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        for number, key in enumerate(keys):
            groups.setdefault(self.client.bucket(key), []).append(number)
        return groups

    async def _scan_bucket(self, name: str) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        cursor: Any = 0
        while True:
            cursor, part = await self.client.run("HSCAN", name, cursor, "COUNT", SCANNED_AT_ONCE)
            found.update(_pairs(part))
            if int(cursor) == 0:
                return found

    def _states(self, space: str, bucket: int) -> str:
        return self.client.key(bucket, f"v:{space}")

    def _endings(self, space: str, bucket: int) -> str:
        return self.client.key(bucket, f"ve:{space}")


def _pairs(answer: Any) -> dict[bytes, bytes]:
    """A hash as one of the two connections gives it."""
    return dict(answer) if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))


def _record(fields: Mapping[bytes, bytes], space: bytes) -> SpaceRecord:
    try:
        record = _RECORD.decode(fields[b"r:" + space])
    except msgspec.DecodeError as error:
        raise Fatal(f"the record of space {space.decode()} belongs to another release of ctxpipe: {error}") from error
    state: Any = fields[b"s:" + space].decode()
    changed_us, evidence = int(fields[b"c:" + space]), fields.get(b"e:" + space, b"")
    return msgspec.structs.replace(record, state=state, changed_us=changed_us, evidence=evidence)


def _decoded(space: str, value: bytes) -> VectorState:
    try:
        return _STATE.decode(value)
    except msgspec.DecodeError as error:
        raise Fatal(f"a state of space {space} belongs to another release of ctxpipe: {error}") from error
