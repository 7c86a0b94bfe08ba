"""Bundles and fragments in Redis: dirty counters per bucket, one string key per unit. See BundleStore, BundleReader.

Their keys are `<base>b:{<bucket>}:<unit>:<key>`: what they are comes before the bucket, so that near caches are told of
them by one prefix. With 64 prefixes, one per bucket, every write to Redis took 1.4 µs longer, per context version.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from pipeline.core.errors import Fatal
from pipeline.stores.redis_client import Call, RedisClient
from pipeline.stores.store import AppliedPosition, Fetched, Partition
from schemas.bundle import ROOT_UNIT, Stored, UnitKey, decode_stored, encode_stored

_DELETION_REMEMBERED_S = 86_400
_REMEMBERED_NAMES = 50_000
_DECODE_POSITION = msgspec.json.Decoder(AppliedPosition).decode


class RedisBundles:
    """See BundleStore, BundleReader and HistoryReader."""

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
        settings, bucket_of = self.client.settings, self.client.bucket
        lives: list[Any] = [settings.time_to_live_s, _DELETION_REMEMBERED_S, settings.retention_s]
        for number, (key, stored) in enumerate(items):
            bucket = bucket_of(key.key)
            group = groups.get(bucket)
            if group is None:
                group = groups[bucket] = ([], [], list(lives))
            numbers, names, values = group
            numbers.append(number)
            names.append(self.name(key))
            values.append(self._encode(stored))
        answers = await self.client.call([("put", names, values) for _, names, values in groups.values()])
        changed = [False] * len(items)
        for (numbers, _, _), answer in zip(groups.values(), answers, strict=True):
            for number, flag in zip(numbers, answer, strict=True):
                changed[number] = bool(flag)
        return changed

    async def get(self, keys: Sequence[UnitKey]) -> list[Stored | None]:
        values = await self.values([self.name(key) for key in keys])
        return [live(value) for value in values]

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        names = [self.name(UnitKey(ROOT_UNIT, key)) for key in keys]
        if not names:
            return []
        if self.client.settings.cluster:
            return await self._fetch_from_cluster(names)
        rows = (await self.client.call([("fetch", names, [self.client.base])]))[0]
        return [_fetched(row[0], row[1:]) for row in rows]

    async def read_at(self, places: Sequence[tuple[UnitKey, int]]) -> list[Stored | None]:
        present = [self.name(key) for key, _ in places]
        former = [self._former_name(key, counter) for key, counter in places]
        values = await self.values([*present, *former])
        found: list[Stored | None] = []
        for number, (_, counter) in enumerate(places):
            both = (live(values[number]), live(values[len(places) + number]))
            found.append(next((one for one in both if one is not None and one.counter == counter), None))
        return found

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        return decode_applied(await self.client.run("HGETALL", self.applied_key))

    async def scan(self) -> AsyncIterator[UnitKey]:
        """All stored units, live or deleted, in no order; for verification."""
        pattern = f"{self.prefix}*".encode()
        async for name in self.client.connection.scan_iter(match=pattern, count=1000):
            yield self.unit_key(name)

    @property
    def applied_key(self) -> str:
        """Where the applied positions are: a hash, see decode_applied."""
        return self.client.key(0, "applied")

    @property
    def prefix(self) -> str:
        """What the keys of all bundles and fragments begin with, and no others."""
        return f"{self.client.base}b:"

    def unit_key(self, name: bytes) -> UnitKey:
        """Of a key in Redis that begins with `prefix`. Raises ValueError for one that no bundle has."""
        _, unit, key = name[len(self.prefix) :].decode().split(":", 2)
        return UnitKey(unit, key)

    async def _fetch_from_cluster(self, names: list[str]) -> list[Fetched]:
        bundles = await self.values(names)
        references = [_reference_names(value) for value in bundles]
        rests = list(dict.fromkeys(name for names_of in references for name in names_of))
        values = dict(zip(rests, await self.values([self.client.base + rest for rest in rests]), strict=True))
        rows = zip(bundles, references, strict=True)
        return [_fetched(bundle, [values[name] for name in names_of]) for bundle, names_of in rows]

    async def values(self, names: list[str]) -> list[bytes | None]:
        """As they are stored, by their keys in Redis (see `name`)."""
        if not names:
            return []
        if not self.client.settings.cluster:
            return list(await self.client.run("MGET", *names))
        return await self.client.call([("value", [name], []) for name in names])

    def name(self, key: UnitKey) -> str:
        """Its key in Redis."""
        return self.client.base + self._make_rest(key.unit, key.key)

    def _former_name(self, key: UnitKey, counter: int) -> str:
        """As functions.lua makes it; it begins with nothing that near caches follow."""
        return f"{self.client.base}h:{{{self.client.bucket(key.key)}}}:{key.unit}:{key.key}:{counter:016d}"

    def _make_rest(self, unit: str, key: str) -> str:
        return f"b:{{{self.client.bucket(key)}}}:{unit}:{key}"

    def _encode(self, stored: Stored) -> bytes:
        """The header also names the fragments' keys, so that one call on the server can read them too."""
        if stored.meta is None or not stored.meta.fragments:
            return encode_stored(stored)
        rest = self._rest
        names = list({rest(ref.unit, ref.key): None for ref in stored.meta.fragments if ref.key is not None})
        value = encode_stored(stored)
        end = value.index(b"\n")
        return b'%b,"keys":%b}%b' % (value[: end - 1], msgspec.json.encode(names), value[end:])


def wanted(stored: Stored | None) -> list[tuple[str, str]]:
    """Unit and key of the fragments that it refers to, each once."""
    if stored is None or stored.meta is None or not stored.meta.fragments:
        return []
    references = stored.meta.fragments
    return list({(reference.unit, reference.key): None for reference in references if reference.key is not None})


def live(value: bytes | None) -> Stored | None:
    """None for one that has been deleted, too."""
    return None if value is None or value[17:18] == b"-" else decode_stored(value)


def _fetched(bundle: bytes | None, fragments: Sequence[bytes | None]) -> Fetched:
    stored = live(bundle)
    if stored is None:
        return Fetched(None, {})
    pairs = ((key, live(value)) for key, value in zip(wanted(stored), fragments, strict=True))
    return Fetched(stored, {key: fragment for key, fragment in pairs if fragment is not None})


class _Keys(msgspec.Struct):
    keys: list[str] = []


_DECODE_KEYS = msgspec.json.Decoder(_Keys).decode


def _reference_names(value: bytes | None) -> list[str]:
    if value is None or value[17:18] == b"-":
        return []
    return _DECODE_KEYS(value[17 : value.index(b"\n", 17)]).keys


def decode_applied(answer: Any) -> dict[Partition, AppliedPosition]:
    """Of HGETALL: a list in RESP2, a dict in RESP3. Raises Fatal for what another release wrote."""
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    try:
        return {parse_partition(name.decode()): _DECODE_POSITION(value) for name, value in pairs}
    except (msgspec.DecodeError, ValueError) as error:
        raise Fatal(f"the applied positions in Redis are of another release of ctxpipe: {error}") from error


def parse_partition(text: str) -> Partition:
    topic, number = text.rsplit("/", 1)
    return topic, int(number)
