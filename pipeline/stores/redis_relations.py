"""Relations in Redis: per parent value a hash of members, sorted sets of entries, hashes of counters and references."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgpack

from pipeline.stores.redis_client import Call, RedisClient
from pipeline.stores.store import Contribution, Membership, RelationRead, RelationView

# Redis reads msgpack of the kind that has no bytes type, so bytes go as raw text.
_ENCODE = msgpack.Packer(use_bin_type=False).pack
_PLAIN = Contribution()
_SCAN_COUNT = 1000


class RedisRelations:
    """See RelationStore."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client

    async def relate(self, memberships: Sequence[Membership]) -> None:
        places: dict[tuple[int, str], list[Any]] = {}
        for item in memberships:
            arguments = places.setdefault((item.relation, item.parent), [])
            arguments.extend((item.child, item.version, _blob(item.contribution)))
        buckets: dict[int, tuple[list[str], list[Any]]] = {}
        for (relation, parent), arguments in places.items():
            bucket = self.client.bucket(parent)
            keys, flat = buckets.setdefault(bucket, ([], []))
            keys.append(self._key(bucket, relation, parent))
            flat.append(len(arguments) // 3)
            flat.extend(arguments)
        await self.client.call([("relate", keys, flat) for keys, flat in buckets.values()])

    async def read(self, reads: Sequence[RelationRead]) -> list[RelationView]:
        groups = self._grouped((read.relation, read.parent) for read in reads)
        calls: list[Call] = []
        for numbers, keys in groups:
            calls.append(("view", keys, [part for n in numbers for part in (reads[n].limit, reads[n].tops)]))
        views = [RelationView()] * len(reads)
        for (numbers, _), answers in zip(groups, await self.client.call(calls), strict=True):
            for number, answer in zip(numbers, answers, strict=True):
                read = reads[number]
                views[number] = RelationView(entries=answer) if read.limit else _totals(answer, read.tops)
        return views

    async def members(self, relation: int, parents: Sequence[str], limit: int) -> list[list[str] | None]:
        groups = self._grouped((relation, parent) for parent in parents)
        found: list[list[str] | None] = [None] * len(parents)
        answers = await self.client.call([("members", keys, [limit]) for _, keys in groups])
        for (numbers, _), answer in zip(groups, answers, strict=True):
            for number, children in zip(numbers, answer, strict=True):
                found[number] = None if children is None else [child.decode() for child in children]
        return found

    async def all_members(self, relation: int, parent: str) -> list[str]:
        name, cursor = self._key(self.client.bucket(parent), relation, parent), 0
        found: dict[str, None] = {}
        while True:
            cursor, flat = await self.client.run("HSCAN", name, cursor, "COUNT", _SCAN_COUNT)
            pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
            found.update((child.decode(), None) for child, value in pairs if len(value) > 32)
            cursor = int(cursor)
            if cursor == 0:
                return list(found)

    def _grouped(self, places: Iterable[tuple[int, str]]) -> list[tuple[list[int], list[str]]]:
        groups: dict[int, tuple[list[int], list[str]]] = {}
        for number, (relation, parent) in enumerate(places):
            bucket = self.client.bucket(parent)
            numbers, keys = groups.setdefault(bucket, ([], []))
            numbers.append(number)
            keys.append(self._key(bucket, relation, parent))
        return list(groups.values())

    def _key(self, bucket: int, relation: int, parent: str) -> str:
        return self.client.key(bucket, f"x:{relation}:{parent}")


def _blob(contribution: Contribution | None) -> bytes:
    if contribution is None:
        return b""
    if not contribution.entries and not contribution.counters:
        return b"+"
    entries = [b"" if entry is None else entry for entry in contribution.entries]
    counters = [part for pair in contribution.counters for part in pair]
    distincts = [part for pair in contribution.distincts for part in pair]
    blob: bytes = _ENCODE((entries, counters, distincts))
    return blob


def _totals(answer: list[Any], tops: int) -> RelationView:
    flat, groups = answer
    counters = {flat[i]: int(flat[i + 1]) for i in range(0, len(flat), 2)}
    step = tops + 1
    by_group: dict[bytes, list[bytes | None]] = {}
    for start in range(0, len(groups), step):
        by_group[groups[start]] = [entry or None for entry in groups[start + 1 : start + step]]
    return RelationView(counters=counters, tops=by_group)
