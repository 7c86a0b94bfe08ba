"""All stores of one context version on one Redis, and the pointer to the serving version."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from pipeline.stores.redis_bundles import RedisBundles
from pipeline.stores.redis_client import RedisClient, RedisSettings
from pipeline.stores.redis_marks import RedisMarks
from pipeline.stores.redis_relations import RedisRelations
from pipeline.stores.redis_rows import RedisRows


class RedisServing:
    """Which version of a context answers lookups, and how its `auto` sections are composed."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._pointer = f"{client.settings.prefix}:{client.settings.context}:serving"

    async def promote(self, version: int) -> None:
        """Lookups use this version from now on, unless a newer one already serves."""
        known = await self.current()
        if known is None or known < version:
            await self.client.run("SET", self._pointer, version)

    async def current(self) -> int | None:
        """The serving version; None before the first has caught up."""
        value = await self.client.run("GET", self._pointer)
        return None if value is None else int(value)

    async def composition(self, proposed: dict[str, str]) -> dict[str, str]:
        """The composition of this version: the first proposal is kept, so that all workers and lookups agree."""
        name = self.client.key(0, "composition")
        await self.client.run("SETNX", name, msgspec.json.encode(proposed))
        return msgspec.json.decode(await self.client.run("GET", name), type=dict[str, str])

    async def known_composition(self) -> dict[str, str] | None:
        """What `composition` keeps, for readers; None before the first worker started."""
        value = await self.client.run("GET", self.client.key(0, "composition"))
        return None if value is None else msgspec.json.decode(value, type=dict[str, str])


@dataclass(frozen=True, slots=True)
class Stores:
    """What the flow, the agents and lookups need of Redis. `reader` is the BundleReader."""

    client: RedisClient
    rows: RedisRows
    relations: RedisRelations
    bundles: RedisBundles
    marks: RedisMarks
    reader: RedisBundles
    serving: RedisServing

    async def close(self) -> None:
        await self.client.close()


async def open_stores(settings: RedisSettings) -> Stores:
    """Connects and loads the store functions. Raises Retryable when Redis is away, EnvironmentProblem at a refusal."""
    client = RedisClient(settings)
    await client.load_functions()
    bundles = RedisBundles(client)
    return Stores(
        client, RedisRows(client), RedisRelations(client), bundles, RedisMarks(client), bundles, RedisServing(client)
    )
