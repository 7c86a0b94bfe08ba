"""Offsets beside the data: every bucket holds how far each partition is in it. See MarkStore and DESIGN section 7."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import msgspec

from pipeline.core.errors import Retryable
from pipeline.stores.redis_client import RedisClient
from pipeline.stores.store import AppliedPosition, Partition, ShardChanged


class RedisMarks:
    """See MarkStore. A bucket is known by the run id of the process that answers, and by a token in its memory."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._identities: list[bytes] = []
        self._applied: dict[Partition, AppliedPosition] = {}

    async def write_marks(self, offsets: Mapping[Partition, int]) -> None:
        if not self._identities:
            raise Retryable("marks were never read: the shards' identity is not known")
        flat = [part for partition, offset in offsets.items() for part in (partition_text(partition), offset)]
        buckets = range(self.client.settings.buckets)
        answers = await self.client.call(
            [("mark", [self.client.key(bucket, "m")], [self._identities[bucket], *flat]) for bucket in buckets]
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
            [("marks", [self.client.key(bucket, "m")], [secrets.token_hex(8), *names]) for bucket in buckets]
        )
        self._identities = [answer[0] for answer in answers]
        self._applied.clear()
        smallest = {}
        for number, partition in enumerate(partitions):
            smallest[partition] = min(int(answer[1][number] or 0) for answer in answers)
        return smallest

    async def write_applied(self, positions: Mapping[Partition, AppliedPosition]) -> None:
        if not positions:
            return
        encoded: list[str | bytes] = []
        for partition, position in positions.items():
            known = self._applied.get(partition)
            if not position.commit_time_us and known is not None:
                # A batch of snapshot rows or broken records says nothing of time: what was true before stays true.
                position = msgspec.structs.replace(known, offset=position.offset)
            self._applied[partition] = position
            encoded += (partition_text(partition), msgspec.json.encode(position))
        await self.client.run("HSET", self.client.key(0, "applied"), *encoded)

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        from pipeline.stores.redis_bundles import RedisBundles

        return await RedisBundles(self.client).read_applied()


def partition_text(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
