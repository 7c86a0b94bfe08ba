"""Bundles and fragments in Redis: dirty counters per bucket, one string key per unit. See BundleStore, BundleReader."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from pipeline.stores.redis_client import Call, RedisClient
from pipeline.stores.store import AppliedPosition, Fetched, Partition
from schemas.bundle import ROOT_UNIT, Stored, UnitKey, decode_stored, encode_stored

_DELETION_REMEMBERED_S = 86_400
_REMEMBERED_NAMES = 50_000
_DECODE_POSITION = msgspec.json.Decoder(AppliedPosition).decode


class RedisBundles:
    """See BundleStore and BundleReader."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._rest = lru_cache(_REMEMBERED_NAMES)(self._make_rest)

    async def mark_dirty(self, keys: Sequence[UnitKey]) -> list[int]:
        groups: dict[int, tuple[list[int], list[str]]] = {}
        for number, key in enumerate(keys):
            numbers, fields = groups.setdefault(self.client.bucket(key.key), ([], []))
            numbers.append(number)
            fields.append(f"{key.unit}:{key.key}")
        calls: list[Call] = [("dirty", [self.client.key(b, "d")], fields) for b, (_, fields) in groups.items()]
        counters = [0] * len(keys)
        for (numbers, _), answers in zip(groups.values(), await self.client.call(calls), strict=True):
            for number, counter in zip(numbers, answers, strict=True):
                counters[number] = counter
        return counters

    async def put(self, items: Sequence[tuple[UnitKey, Stored]]) -> list[bool]:
        groups: dict[int, tuple[list[int], list[str], list[Any]]] = {}
        bucket_of, time_to_live_s = self.client.bucket, self.client.settings.time_to_live_s
        for number, (key, stored) in enumerate(items):
            bucket = bucket_of(key.key)
            group = groups.get(bucket)
            if group is None:
                group = groups[bucket] = ([], [], [time_to_live_s, _DELETION_REMEMBERED_S])
            numbers, names, values = group
            numbers.append(number)
            names.append(self._name(key))
            values.append(self._encode(stored))
        answers = await self.client.call([("put", names, values) for _, names, values in groups.values()])
        changed = [False] * len(items)
        for (numbers, _, _), answer in zip(groups.values(), answers, strict=True):
            for number, flag in zip(numbers, answer, strict=True):
                changed[number] = bool(flag)
        return changed

    async def get(self, keys: Sequence[UnitKey]) -> list[Stored | None]:
        values = await self._values([self._name(key) for key in keys])
        return [_live(value) for value in values]

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        names = [self._name(UnitKey(ROOT_UNIT, key)) for key in keys]
        if not names:
            return []
        if self.client.settings.cluster:
            return await self._fetch_from_cluster(names)
        rows = (await self.client.call([("fetch", names, [self.client.base])]))[0]
        return [_fetched(row[0], row[1:]) for row in rows]

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        flat = await self.client.run("HGETALL", self.client.key(0, "applied"))
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        return {parse_partition(name.decode()): _DECODE_POSITION(value) for name, value in pairs}

    async def scan(self) -> AsyncIterator[UnitKey]:
        """All stored units, live or deleted, in no order; for verification."""
        pattern = f"{self.client.base}*}}:b:*".encode()
        async for name in self.client.connection.scan_iter(match=pattern, count=1000):
            unit, key = name.decode().split("}:b:", 1)[1].split(":", 1)
            yield UnitKey(unit, key)

    async def _fetch_from_cluster(self, names: list[str]) -> list[Fetched]:
        bundles = await self._values(names)
        references = [_reference_names(value) for value in bundles]
        wanted = list(dict.fromkeys(name for names_of in references for name in names_of))
        values = dict(zip(wanted, await self._values([self.client.base + name for name in wanted]), strict=True))
        rows = zip(bundles, references, strict=True)
        return [_fetched(bundle, [values[name] for name in names_of]) for bundle, names_of in rows]

    async def _values(self, names: list[str]) -> list[bytes | None]:
        if not names:
            return []
        if not self.client.settings.cluster:
            return list(await self.client.run("MGET", *names))
        return await self.client.call([("value", [name], []) for name in names])

    def _name(self, key: UnitKey) -> str:
        return self.client.base + self._make_rest(key.unit, key.key)

    def _make_rest(self, unit: str, key: str) -> str:
        return f"{{{self.client.bucket(key)}}}:b:{unit}:{key}"

    def _encode(self, stored: Stored) -> bytes:
        """The header also names the fragments' keys, so that one call on the server can read them too."""
        if stored.meta is None or not stored.meta.fragments:
            return encode_stored(stored)
        rest = self._rest
        names = list({rest(ref.unit, ref.key): None for ref in stored.meta.fragments if ref.key is not None})
        value = encode_stored(stored)
        end = value.index(b"\n")
        return b'%b,"keys":%b}%b' % (value[: end - 1], msgspec.json.encode(names), value[end:])


def _wanted(stored: Stored) -> list[tuple[str, str]]:
    references = stored.meta.fragments if stored.meta is not None else []
    found = {(reference.unit, reference.key): None for reference in references if reference.key is not None}
    return list(found)


def _live(value: bytes | None) -> Stored | None:
    stored = decode_stored(value) if value is not None else None
    return None if stored is None or stored.deleted else stored


def _fetched(bundle: bytes | None, fragments: Sequence[bytes | None]) -> Fetched:
    stored = _live(bundle)
    if stored is None:
        return Fetched(None, {})
    pairs = ((key, _live(value)) for key, value in zip(_wanted(stored), fragments, strict=True))
    return Fetched(stored, {key: fragment for key, fragment in pairs if fragment is not None})


class _Keys(msgspec.Struct):
    keys: list[str] = []


_DECODE_KEYS = msgspec.json.Decoder(_Keys).decode


def _reference_names(value: bytes | None) -> list[str]:
    if value is None or value[17:18] == b"-":
        return []
    return _DECODE_KEYS(value[17 : value.index(b"\n", 17)]).keys


def parse_partition(text: str) -> Partition:
    topic, number = text.rsplit("/", 1)
    return topic, int(number)
