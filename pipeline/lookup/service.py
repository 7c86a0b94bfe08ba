"""The lookup service: key → answer, inside a budget and always labelled. It knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.lookup.answer import Answer, Status
from pipeline.lookup.compose import splice
from pipeline.stores.store import AppliedPosition, BundleReader, Fetched, Partition
from schemas.context import ContextSpec
from schemas.keys import root_key_texts

KEY_CHARACTERS_MAX = 1024
KEYS_MAX = 1000
READY_S = 1.0
APPLIED_KEPT_S = 0.1
"""Applied positions may be so old: they say less than is true, never more."""


class UnknownContext(CtxpipeError):
    """No context of this name is served here."""


class MalformedKey(CtxpipeError):
    """Not a key of this context: the text says what is wrong."""


class LookupUnavailable(Retryable):
    """The store did not answer inside the budget and the spec has no default bundle."""


@dataclass
class ServedContext:
    """One version of a context. `empty` holds, per unit, the bytes that stand in for a fragment that does not exist
    (bundle.empty_bytes); `queries` counts those that read from it now."""

    spec: ContextSpec
    reader: BundleReader
    empty: Mapping[str, bytes]
    applied: Mapping[Partition, AppliedPosition] = field(default_factory=dict)
    applied_at_s: float | None = None
    queries: int = 0


class LookupService:
    """Safe for concurrent calls in one event loop. `budget_ms` replaces every spec's own, e.g. for a person waiting."""

    def __init__(self, contexts: Mapping[str, ServedContext], clock: Clock, budget_ms: float | None = None) -> None:
        self._contexts, self._clock, self._budget_ms = dict(contexts), clock, budget_ms

    @property
    def specs(self) -> list[ContextSpec]:
        return [context.spec for context in self._contexts.values()]

    async def get(self, context: str, key: str) -> Answer:
        """Raises UnknownContext, MalformedKey, LookupUnavailable."""
        return (await self.get_many(context, [key]))[0]

    async def get_many(self, context: str, keys: Sequence[str]) -> list[Answer]:
        """One answer per key, in order; at most KEYS_MAX keys. Raises as `get`; one bad key refuses them all."""
        served = self._contexts.get(context)
        if served is None:
            raise UnknownContext(f"no context {context!r} is served here")
        # All of a query comes from one version, whatever takes over meanwhile.
        served.queries += 1
        try:
            return await self._get_many(served, keys)
        finally:
            served.queries -= 1

    def use(self, context: str, served: ServedContext) -> None:
        """From the next query on, this version answers."""
        self._contexts[context] = served

    async def warm(self, served: ServedContext) -> None:
        """Before `use`: raises Retryable when its store is away."""
        await self._refresh_applied(served)

    async def _get_many(self, served: ServedContext, keys: Sequence[str]) -> list[Answer]:
        if len(keys) > KEYS_MAX:
            raise MalformedKey(f"{len(keys)} keys at once; at most {KEYS_MAX} are allowed")
        for key in keys:
            _check_key(served.spec, key)
        budget_ms = self._budget_ms if self._budget_ms is not None else served.spec.serving.budget_ms
        try:
            async with asyncio.timeout(budget_ms / 1000):
                await self._refresh_applied(served)
                fetched = await served.reader.fetch(root_key_texts(served.spec, keys))
        except (TimeoutError, Retryable) as error:
            return self._without_store(served, keys, error, budget_ms)
        return [self._answer(served, key, found) for key, found in zip(keys, fetched, strict=True)]

    async def ready(self) -> dict[str, str]:
        """Context → why its lookups cannot be answered; empty when ready."""
        problems = {}
        for name, served in list(self._contexts.items()):
            served.queries += 1
            try:
                async with asyncio.timeout(READY_S):
                    await served.reader.read_applied()
            except TimeoutError:
                problems[name] = f"the store did not answer within {READY_S:g} s"
            except CtxpipeError as error:
                problems[name] = str(error)
            finally:
                served.queries -= 1
        return problems

    async def _refresh_applied(self, served: ServedContext) -> None:
        """Read before the bundle, so that the bundle holds at least what the positions say (promise 4)."""
        now_s = self._clock.monotonic_s()
        if served.applied_at_s is None or now_s - served.applied_at_s > APPLIED_KEPT_S:
            served.applied = await served.reader.read_applied()
            served.applied_at_s = now_s

    def _answer(self, served: ServedContext, key: str, fetched: Fetched) -> Answer:
        as_of_us = _watermarks(served)
        stored = fetched.bundle
        if stored is None or stored.meta is None:
            return self._labelled(served, key, "missing", as_of_us, None, served.spec.version)
        bundle = splice(stored.body, stored.meta.fragments, fetched.fragments, served.empty)
        return self._labelled(served, key, "fresh", as_of_us, bundle, stored.meta.spec_version)

    def _without_store(
        self, served: ServedContext, keys: Sequence[str], error: Exception, budget_ms: float
    ) -> list[Answer]:
        """Promise 5: the default bundle, labelled, where the spec has one."""
        if served.spec.serving.default is None:
            late = f"the store did not answer within {budget_ms:g} ms"
            raise LookupUnavailable(late if isinstance(error, TimeoutError) else str(error)) from error
        unknown: dict[str, int | None] = dict.fromkeys(_sources(served.spec))
        return [self._labelled(served, key, "missing", unknown, None, served.spec.version) for key in keys]

    def _labelled(
        self,
        served: ServedContext,
        key: str,
        status: Status,
        as_of_us: dict[str, int | None],
        bundle: bytes | None,
        spec_version: int,
    ) -> Answer:
        now_us = self._clock.now_us()
        age_ms = {
            source: None if time_us is None else max(0, now_us - time_us) / 1000 for source, time_us in as_of_us.items()
        }
        limit_ms = served.spec.serving.max_age_ms
        if bundle is None and served.spec.serving.default is not None:
            status, bundle = "fallback", msgspec.json.encode(served.spec.serving.default)
        elif bundle is not None and any(age is None or age > limit_ms for age in age_ms.values()):
            status = "stale"
        return Answer(
            context=served.spec.context,
            key=key,
            status=status,
            as_of_us=as_of_us,
            age_ms=age_ms,
            spec_version=spec_version,
            hash=None if bundle is None else hashlib.blake2b(bundle, digest_size=16).hexdigest(),
            bundle=bundle,
        )


def _check_key(spec: ContextSpec, key: str) -> None:
    columns = spec.entities[spec.root].key
    shape = "|".join(columns)
    if not isinstance(key, str) or not key:
        raise MalformedKey(f"a key is text of the form {shape}, not empty")
    if len(key) > KEY_CHARACTERS_MAX:
        raise MalformedKey(f"a key of {len(key)} characters; at most {KEY_CHARACTERS_MAX} are allowed")
    if key.count("|") != len(columns) - 1:
        parts = "part" if len(columns) == 1 else "parts, joined by |"
        raise MalformedKey(f"a key of {spec.context} has {len(columns)} {parts}: {shape} (a | inside a part is %7C)")
    if "\x00" in key or (not key.isprintable() and any("\ud800" <= character <= "\udfff" for character in key)):
        raise MalformedKey("a key has no NUL and no half of a surrogate pair")


def _sources(spec: ContextSpec) -> list[str]:
    return sorted({entity.source for entity in spec.entities.values()})


def _watermarks(served: ServedContext) -> dict[str, int | None]:
    """Per source, up to when everything that it committed has been applied in every partition; None: not known, as
    while a partition has seen nothing that tells."""
    found: dict[str, list[int]] = {source: [] for source in _sources(served.spec)}
    for position in served.applied.values():
        if position.source in found:
            found[position.source].append(position.commit_time_us)
    return {source: min(times) or None if times else None for source, times in found.items()}
