"""Opens what `get`, `serve` and `verify` read from: a context's stores, its plan's empty sections, its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.bundle import empty_bytes
from pipeline.core.errors import ConfigError
from pipeline.lookup.compose import splice
from pipeline.lookup.service import ServedContext
from pipeline.plan import compile_plan
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from pipeline.stores.store import AppliedPosition, Partition
from schemas.bundle import ROOT_UNIT
from schemas.context import ContextSpec

if TYPE_CHECKING:
    from pipeline.core.config import Config

SCAN_KEYS = 1_000


@dataclass(frozen=True)
class OpenContext:
    """One context on its stores, as answers and as a served context."""

    spec: ContextSpec
    stores: Stores
    empty: Mapping[str, bytes]

    @property
    def served(self) -> ServedContext:
        return ServedContext(self.spec, self.stores.reader, self.empty)

    async def bundles(self, keys: Sequence[str]) -> list[bytes | None]:
        """See pipeline.ops.verify.Answers."""
        found: list[bytes | None] = []
        for fetched in await self.stores.reader.fetch(keys):
            stored = fetched.bundle
            if stored is None or stored.meta is None:
                found.append(None)
            else:
                found.append(splice(stored.body, stored.meta.fragments, fetched.fragments, self.empty))
        return found

    async def applied(self) -> Mapping[Partition, AppliedPosition]:
        return await self.stores.reader.read_applied()

    async def stored_keys(self) -> AsyncIterator[list[str]]:
        chunk: list[str] = []
        async for unit_key in self.stores.reader.scan():
            if unit_key.unit != ROOT_UNIT:
                continue
            chunk.append(unit_key.key)
            if len(chunk) == SCAN_KEYS:
                yield chunk
                chunk = []
        yield chunk


def spec_named(contexts: Mapping[str, ContextSpec], name: str) -> ContextSpec:
    """Raises ConfigError with the nearest name."""
    if name in contexts:
        return contexts[name]
    near = get_close_matches(name, contexts, 1)
    hint = f"did you mean {near[0]}?" if near else f"the configuration has {', '.join(sorted(contexts)) or 'none'}"
    raise ConfigError([f"no context {name!r}; {hint}"])


async def open_context(config: Config, spec: ContextSpec, timeout_s: float = 5.0) -> OpenContext:
    """Raises Retryable when Redis is away. Close `stores` afterwards."""
    settings = RedisSettings(
        url=config.redis.url,
        context=spec.context,
        version=spec.version,
        cluster=config.redis.cluster,
        prefix=config.redis.prefix,
        time_to_live_s=spec.serving.time_to_live_s or 0,
        timeout_s=timeout_s,
    )
    stores = await open_stores(settings)
    try:
        plan = compile_plan(spec, await stores.serving.known_composition())
    except BaseException:
        await stores.close()
        raise
    empty = {unit: empty_bytes(node) for unit, node in plan.units.items() if unit != ROOT_UNIT}
    return OpenContext(spec, stores, empty)


def make_reader(name: str, source: Mapping[str, Any]) -> Any:
    """The TableReader of a configured source; the composition root is where connectors meet the rest."""
    from connectors.postgres.config import parse_config
    from connectors.postgres.reader import PostgresReader

    if source.get("connector") != "postgres":
        raise ConfigError([f"source {name}: verify cannot read sources of connector {source.get('connector')!r} yet"])
    parsed = parse_config(name, dict(source))
    return PostgresReader(parsed.dsn.get_secret_value(), name, parsed.row_filters)
