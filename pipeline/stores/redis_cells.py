"""Wide-column rows in Redis: among the rows, in their hash, with their merged state. See CellStore, functions.lua."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.stores.redis_client import Call, RedisClient
from pipeline.stores.redis_rows import body_of, encode_body, encode_links, former_links
from pipeline.stores.store import CellOutcome, CellPlace, CellRow, CellWrite, Look

_TOKEN_BYTES = 8
_NEVER_SEEN = CellRow(b"", b"", [])
Partition = tuple[str, str]
"""(table, partition key text)."""


class RedisCells:
    """See CellStore. A state's token is random: two states are never taken for one another, however alike."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client

    async def read(self, places: Sequence[CellPlace]) -> list[CellRow]:
        groups: dict[tuple[str, int], list[int]] = {}
        for number, place in enumerate(places):
            groups.setdefault((place.table, self.client.bucket(place.key)), []).append(number)
        calls: list[Call] = [
            ("rows", [self._rows(*group), self._floor(*group)], [places[number].key for number in numbers])
            for group, numbers in groups.items()
        ]
        partitions, reading = self._stones(places)
        answers = await self.client.call([*calls, *reading])
        stones = _stones_by_partition(partitions, answers[len(calls) :])
        found = [_NEVER_SEEN] * len(places)
        for numbers, answer in zip(groups.values(), answers, strict=False):
            for number, value in zip(numbers, answer, strict=False):
                found[number] = _cell_row(value, _of(stones, places[number]))
        return found

    async def write(self, writes: Sequence[CellWrite]) -> list[CellOutcome]:
        groups: dict[tuple[str, int], tuple[list[int], list[Any]]] = {}
        for number, write in enumerate(writes):
            place = write.place
            numbers, flat = groups.setdefault((place.table, self.client.bucket(place.key)), ([], []))
            numbers.append(number)
            token = secrets.token_hex(_TOKEN_BYTES).encode()
            body = encode_body(write.commit_time_us, write.values, write.state + token)
            expiry = "" if write.expires_us is None else write.expires_us
            flat += (_member(place.table, place.key), place.key, write.token, write.version, encode_links(write.links))
            flat += (body, "1" if write.confirmed else "0", expiry)
        calls: list[Call] = [
            ("cells", [self._rows(*group), self.client.key(group[1], "e")], flat) for group, (_, flat) in groups.items()
        ]
        places = [write.place for write in writes]
        partitions, reading = self._stones(places)
        answers = await self._one_after_the_other(self._inhabit(places), calls, reading)
        stones = _stones_by_partition(partitions, answers[2])
        outcomes = [CellOutcome(False)] * len(writes)
        for (numbers, _), answer in zip(groups.values(), answers[1], strict=True):
            for number, former in zip(numbers, answer, strict=True):
                if former.__class__ is bytes:
                    outcomes[number] = CellOutcome(True, former_links(former), _of(stones, places[number]))
        return outcomes

    async def bury(self, table: str, partition: str, tombstone: bytes) -> list[str]:
        bucket = self.client.bucket(partition)
        keys = [self._partition(bucket, "g", table, partition), self._partition(bucket, "p", table, partition)]
        (members,) = await self.client.call([("bury", keys, [tombstone])])
        return [member.decode() for member in members]

    async def due(self, now_us: int, limit: int, done: Sequence[Look] = ()) -> list[tuple[str, str]]:
        looks: dict[int, list[Any]] = {}
        for look in done:
            next_us = "" if look.next_us is None else look.next_us
            member = _member(look.table, look.key)
            looks.setdefault(self.client.bucket(look.key), []).extend((member, look.look_us, next_us))
        if looks:
            await self.client.call([("looked", [self.client.key(b, "e")], flat) for b, flat in looks.items()])
        if limit < 1:
            return []
        buckets = range(self.client.settings.buckets)
        each = max(1, limit // len(buckets))
        answers = await self.client.call([("due", [self.client.key(b, "e")], [now_us, each]) for b in buckets])
        found = [member.decode().split("\0", 1) for answer in answers for member in answer]
        return [(table, key) for table, key in found]

    async def _one_after_the_other(self, *steps: Sequence[Call]) -> list[list[Any]]:
        """In one round trip where the order of asking is the order of doing, else one by one."""
        if not self.client.in_order:
            return [await self.client.call(step) for step in steps]
        answers = await self.client.call([call for step in steps for call in step])
        found, start = [], 0
        for step in steps:
            found.append(answers[start : start + len(step)])
            start += len(step)
        return found

    def _inhabit(self, places: Sequence[CellPlace]) -> list[Call]:
        rows: dict[int, dict[Partition, list[str]]] = {}
        for place in places:
            if place.partition is not None:
                bucket = rows.setdefault(self.client.bucket(place.partition), {})
                bucket.setdefault((place.table, place.partition), []).append(place.key)
        calls: list[Call] = []
        for bucket_number, partitions in rows.items():
            keys = [self._partition(bucket_number, "p", *partition) for partition in partitions]
            calls.append(
                ("inhabit", keys, [part for members in partitions.values() for part in (len(members), *members)])
            )
        return calls

    def _stones(self, places: Iterable[CellPlace]) -> tuple[list[list[Partition]], list[Call]]:
        wanted: dict[int, dict[Partition, None]] = {}
        for place in places:
            if place.partition is not None:
                wanted.setdefault(self.client.bucket(place.partition), {})[place.table, place.partition] = None
        calls: list[Call] = [
            ("stones", [self._partition(bucket, "g", *partition) for partition in partitions], [])
            for bucket, partitions in wanted.items()
        ]
        return [list(partitions) for partitions in wanted.values()], calls

    def _rows(self, table: str, bucket: int) -> str:
        return self.client.key(bucket, f"r:{table}")

    def _floor(self, table: str, bucket: int) -> str:
        return self.client.key(bucket, f"f:{table}")

    def _partition(self, bucket: int, what: str, table: str, partition: str) -> str:
        return self.client.key(bucket, f"{what}:{table}:{partition}")


def _member(table: str, key: str) -> str:
    """A row in a bucket's index of expiries; no table's name has a NUL."""
    return f"{table}\0{key}"


def _stones_by_partition(
    partitions: Sequence[Sequence[Partition]], answers: Sequence[Any]
) -> dict[Partition, frozenset[bytes]]:
    found = {}
    for names, answer in zip(partitions, answers, strict=True):
        for name, members in zip(names, answer, strict=True):
            found[name] = frozenset(members)
    return found


def _of(stones: dict[Partition, frozenset[bytes]], place: CellPlace) -> frozenset[bytes]:
    return frozenset() if place.partition is None else stones[place.table, place.partition]


def _cell_row(value: bytes | None, tombstones: frozenset[bytes]) -> CellRow:
    if value is None:
        return CellRow(b"", b"", [], tombstones)
    body, split = body_of(value), -2 * _TOKEN_BYTES
    return CellRow(body.state[:split], body.state[split:], body.values, tombstones)
