"""Opens what `get`, `serve` and `verify` read from: a context's stores, its plan's empty sections, its answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline.bundle import empty_bytes
from pipeline.core.errors import ConfigError
from pipeline.lookup.compose import splice
from pipeline.lookup.service import ServedContext
from pipeline.plan import compile_plan
from pipeline.stores.redis_store import RedisServing, Stores, changed_message, context_settings, open_stores
from pipeline.stores.store import AppliedPosition, Partition
from schemas.bundle import ROOT_UNIT
from schemas.context import ContextSpec
from schemas.definition import changed_parts

if TYPE_CHECKING:
    from pipeline.core.config import Config

SCAN_KEYS = 1_000

_LOG = logging.getLogger("ctxpipe.versions")


@dataclass(frozen=True)
class OpenContext:
    """One version of a context on its stores, as answers and as a served context (see lookup.versions.OpenVersion)."""

    spec: ContextSpec
    stores: Stores
    empty: Mapping[str, bytes]

    @cached_property
    def served(self) -> ServedContext:
        return ServedContext(self.spec, self.stores.reader, self.empty)

    async def serving(self) -> int | None:
        """The version that serves now."""
        return await self.stores.serving.current()

    async def close(self) -> None:
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


def spec_named(contexts: Mapping[str, ContextSpec], name: str) -> ContextSpec:
    """Raises ConfigError with the nearest name."""
    if name in contexts:
        return contexts[name]
    near = get_close_matches(name, contexts, 1)
    hint = f"did you mean {near[0]}?" if near else f"the configuration has {', '.join(sorted(contexts)) or 'none'}"
    raise ConfigError([f"no context {name!r}; {hint}"])


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
    # Copied or linked: the bundles tell. Every section has its empty form at hand.
    return OpenContext(chosen, stores, {node.path: empty_bytes(node) for node in plan.nodes if node.path})


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
    # How answers are labelled may change without a new version.
    return definition.spec.model_copy(update={"description": spec.description, "serving": spec.serving})


async def _without_state(serving: RedisServing, spec: ContextSpec, wanted: int, asked: bool) -> ContextSpec:
    """Before the first worker of the configured version has started, that one answers, with nothing."""
    known = ", ".join(map(str, await serving.versions())) or "none"
    problem = f"context {spec.context}: Redis has nothing of version {wanted}; versions with state: {known}"
    if asked:
        raise ConfigError([problem])
    if wanted != spec.version:
        _LOG.warning("%s. Answering from the configured version %d.", problem, spec.version)
    return spec
