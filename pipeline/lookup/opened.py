"""Opens what lookups read from: a context's stores, its plan's empty sections, its answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline.bundle import empty_bytes
from pipeline.core.errors import ConfigError
from pipeline.lookup.ladder import Rungs
from pipeline.lookup.open_rungs import OpenRungs, RungSettings
from pipeline.lookup.served import ServedContext
from pipeline.plan import Plan, compile_plan
from pipeline.splicing import splice
from pipeline.stores.redis_store import (
    RedisServing,
    Stores,
    changed_message,
    context_settings,
    make_stores,
    open_stores,
    redis_settings,
)
from pipeline.stores.store import AppliedPosition, Partition
from schemas.bundle import ROOT_UNIT
from schemas.context import ContextSpec
from schemas.definition import changed_parts
from schemas.topics import table_topic

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.core.redis import RedisConfig

SCAN_KEYS = 1_000

_LOG = logging.getLogger("ctxpipe.versions")


@dataclass(frozen=True)
class OpenContext:
    """One version of a context on its stores, as answers and as a served context (see lookup.versions.OpenVersion)."""

    spec: ContextSpec
    stores: Stores
    empty: Mapping[str, bytes]
    topics: Mapping[str, str]
    """Topic → source."""
    kept: OpenRungs | None = None
    """The rungs beside the store; see with_rungs."""

    async def with_rungs(self, settings: RungSettings) -> OpenContext:
        """The same, for many lookups inside a budget; closing it closes both."""
        kept = OpenRungs(self.spec, self.stores.reader, self.topics, settings)
        await kept.start()
        return replace(self, kept=kept)

    @cached_property
    def served(self) -> ServedContext:
        return ServedContext(
            self.spec,
            self.stores.reader,
            self.empty,
            topics=self.topics,
            rungs=Rungs(connections=lambda: self.stores.client.connections) if self.kept is None else self.kept.rungs,
            spaces=self.stores.spaces,
            states=self.stores.vector_states,
        )

    async def serving(self) -> int | None:
        """The version that serves now."""
        return await self.stores.serving.current()

    async def close(self) -> None:
        if self.kept is not None:
            await self.kept.close()
        await self.stores.close()

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


async def open_context(
    config: Config,
    spec: ContextSpec,
    timeout_s: float = 5.0,
    version: int | None = None,
    changes_allowed: bool = True,
) -> OpenContext:
    """The version that serves, with the spec that it was built from; the configured one while none serves; `version`
    asks for another. Close it afterwards.

    Raises Retryable when Redis is away, ConfigError for a version without state, and, unless `changes_allowed`, for a
    spec that was changed while its version was not.
    """
    stores = await open_stores(context_settings(config, spec, timeout_s))
    try:
        chosen = await _chosen(stores.serving, spec, version, changes_allowed)
        if chosen.version != spec.version:
            await stores.close()
            stores = await open_stores(context_settings(config, chosen, timeout_s))
        plan = compile_plan(chosen, mask_secret=config.mask_key)
    except BaseException:
        await stores.close()
        raise
    return _opened(chosen, stores, plan, _topics(config, chosen))


def open_without_redis(config: Config, spec: ContextSpec, timeout_s: float = 5.0) -> OpenContext:
    """The configured version, whatever serves: for answers from what was last known, until Redis can be asked."""
    plan = compile_plan(spec, mask_secret=config.mask_key)
    return _opened(spec, make_stores(context_settings(config, spec, timeout_s)), plan, _topics(config, spec))


async def open_by_name(
    redis: RedisConfig, context: str, timeout_s: float = 5.0, version: int | None = None
) -> OpenContext:
    """As open_context, from what Redis itself keeps of a context, so that no file of it is needed: the version that
    serves, else the newest. Positions count for topics that are named as our own connectors name them.

    Raises ConfigError where Redis has nothing of the context or of that version.
    """
    stores = await open_stores(redis_settings(redis, context, version or 1, timeout_s))
    try:
        spec = await _kept(stores.serving, context, version)
        if spec.version != (version or 1):
            await stores.close()
            stores = await open_stores(redis_settings(redis, context, spec.version, timeout_s))
        plan = compile_plan(spec)
    except BaseException:
        await stores.close()
        raise
    topics = {table_topic(entity.source, entity.table): entity.source for entity in spec.entities.values()}
    return _opened(spec, stores, plan, topics)


def _topics(config: Config, spec: ContextSpec) -> dict[str, str]:
    return {config.topic(entity.source, entity.table): entity.source for entity in spec.entities.values()}


def _opened(spec: ContextSpec, stores: Stores, plan: Plan, topics: Mapping[str, str]) -> OpenContext:
    # Copied or linked: the bundles tell. Every section has its empty form at hand.
    empty = {node.path: empty_bytes(node) for node in plan.nodes if node.path}
    return OpenContext(spec, stores, empty, topics)


async def _kept(serving: RedisServing, context: str, version: int | None) -> ContextSpec:
    versions = await serving.versions()
    wanted = version or await serving.current() or max(versions, default=None)
    definition = None if wanted is None else await serving.definition(wanted)
    if definition is None:
        known = ", ".join(map(str, versions)) or "none"
        asked = "" if wanted is None else f" version {wanted}"
        raise ConfigError([f"Redis has nothing of context {context}{asked}; versions with state: {known}"])
    return definition.spec


async def _chosen(serving: RedisServing, spec: ContextSpec, version: int | None, changes_allowed: bool) -> ContextSpec:
    """The spec of the version that answers, as its state was built."""
    wanted = version or await serving.current() or spec.version
    definition = await serving.definition(wanted)
    if definition is None:
        return await _without_state(serving, spec, wanted, asked=version is not None)
    if wanted != spec.version:
        return definition.spec
    changed = changed_parts(definition.spec, spec)
    if changed:
        problem = changed_message(spec, changed, max(await serving.versions(), default=wanted))
        if not changes_allowed:
            raise ConfigError([problem])
        _LOG.warning("%s", problem)
    # How answers are labelled, and how long they are kept, may change without a new version.
    kept = {"description": spec.description, "serving": spec.serving, "history": spec.history}
    return definition.spec.model_copy(update=kept)


async def _without_state(serving: RedisServing, spec: ContextSpec, wanted: int, asked: bool) -> ContextSpec:
    """Before the first worker of the configured version has started, that one answers, with nothing."""
    known = ", ".join(map(str, await serving.versions())) or "none"
    problem = f"context {spec.context}: Redis has nothing of version {wanted}; versions with state: {known}"
    if asked:
        raise ConfigError([problem])
    if wanted != spec.version:
        _LOG.warning("%s. Answering from the configured version %d.", problem, spec.version)
    return spec
