"""Offsets beside the data: every bucket holds how far each partition is in it. See MarkStore and DESIGN section 7."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import msgspec

from pipeline.core.errors import Retryable
from pipeline.stores.redis_client import Call, RedisClient
from pipeline.stores.store import AppliedPosition, Partition, ShardChanged


class RedisMarks:
    """See MarkStore. A bucket is known by the run id of the process that answers, and by a token in its memory.

    `scope` keeps the marks of another consumer group of the same context version apart.
    """

    def __init__(self, client: RedisClient, scope: str = "") -> None:
        self.client = client
        self._scope, self._name = scope, f"m:{scope}" if scope else "m"
        self._identities: list[bytes] = []
        self._applied: dict[Partition, AppliedPosition] = {}

    async def write_marks(self, offsets: Mapping[Partition, int]) -> None:
        if not self._identities:
            raise Retryable("marks were never read: the shards' identity is not known")
        flat = [part for partition, offset in offsets.items() for part in (partition_text(partition), offset)]
        buckets = range(self.client.settings.buckets)
        answers = await self.client.call(
            [("mark", [self.client.key(bucket, self._name)], [self._identities[bucket], *flat]) for bucket in buckets]
        )
        changed = [bucket for bucket in buckets if answers[bucket] != self._identities[bucket]]
        if changed:
            raise ShardChanged(
                f"{len(changed)} of {len(buckets)} buckets are not what took the writes: another Redis process answers,"
                " or its memory was emptied; going back to the marks"
            )

    async def read_marks(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        names = [partition_text(partition) for partition in partitions]
        buckets = range(self.client.settings.buckets)
        answers = await self.client.call(
            [("marks", [self.client.key(bucket, self._name)], [secrets.token_hex(8), *names]) for bucket in buckets]
        )
        self._identities = [answer[0] for answer in answers]
        smallest = {}
        for number, partition in enumerate(partitions):
            smallest[partition] = min(int(answer[1][number] or 0) for answer in answers)
        await self._begin(smallest)
        return smallest

    async def _begin(self, marks: Mapping[Partition, int]) -> None:
        """What an earlier reader has told of these partitions goes on; of a new one it is told that it is read, so that
        nobody takes it for passed before anything came from it."""
        self._applied.clear()
        if self._scope:
            return  # embedding stages tell no positions of sources
        self._applied.update(await self.read_applied())
        new = {partition: mark for partition, mark in marks.items() if partition not in self._applied}
        await self.write_applied({partition: AppliedPosition("", mark, "", 0) for partition, mark in new.items()})

    async def forget(self) -> None:
        """Nobody may be reading by these marks: everything is read from its beginning."""
        self._identities = []
        for bucket in range(self.client.settings.buckets):
            await self.client.run("UNLINK", self.client.key(bucket, self._name))

    async def write_applied(self, positions: Mapping[Partition, AppliedPosition]) -> None:
        if not positions:
            return
        encoded: list[str | bytes] = []
        for partition, position in positions.items():
            position = self._applied[partition] = position.after(self._applied.get(partition))
            encoded += (partition_text(partition), msgspec.json.encode(position))
        applied = self.client.key(0, "applied")
        if not self._identities:
            await self.client.run("HSET", applied, *encoded)
            return
        # A position tells of writes: a Redis without them, e.g. a replica that has just taken over, is told of none.
        call: Call = ("tell", [self.client.key(0, self._name), applied], [self._identities[0], *encoded])
        if (await self.client.call([call]))[0] != self._identities[0]:
            raise ShardChanged("another Redis process answers than took the writes; going back to the marks")

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        from pipeline.stores.redis_bundles import RedisBundles

        return await RedisBundles(self.client).read_applied()


def partition_text(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
