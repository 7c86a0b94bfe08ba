"""Reads bundles straight from Redis, with the lookup service in this process: no server in between, the same answers.

Whoever can log in to Redis sees all bundles that this login may read; what a credential of the HTTP interface narrows
is narrowed there only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from pipeline.client.bundle import Bundle
from pipeline.client.errors import BadRequest, DeadlineExceeded, Unavailable, UnknownContext
from pipeline.client.results import ContextInfo, PastBundle
from pipeline.client.wire import read_past
from pipeline.core.clock import SystemClock
from pipeline.core.config import load, load_contexts
from pipeline.core.errors import ConfigError, CtxpipeError
from pipeline.core.redis import RedisConfig
from pipeline.lookup import service as lookups
from pipeline.lookup.bundle_ids import BadId
from pipeline.lookup.history import History, NotKept
from pipeline.lookup.keys import MalformedKey
from pipeline.lookup.open_rungs import RungSettings
from pipeline.lookup.opened import OpenContext, open_by_name, open_context
from pipeline.lookup.options import BUDGET_MS_MIN, NO_OPTIONS, BadOptions, LookupOptions
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService, LookupUnavailable
from pipeline.lookup.versions import VersionKeeper

OpenVersion = Callable[[str, int | None], Awaitable[OpenContext]]
"""(context, version) → that version, None for the one that serves."""


@dataclass(frozen=True)
class Places:
    """Which contexts there are, how each is opened, and what is kept of its bundles in this process."""

    names: tuple[str, ...]
    open_version: OpenVersion
    rungs: RungSettings


def places_of_redis(redis: RedisConfig, contexts: Sequence[str]) -> Places:
    """Without any file: what each context is says its stored definition."""

    async def open_version(name: str, version: int | None) -> OpenContext:
        return await open_by_name(redis, name, version=version)

    return Places(tuple(sorted(set(contexts))), open_version, RungSettings(redis))


def places_of_file(path: str, contexts: Sequence[str] | None) -> Places:
    """As `ctxpipe serve` reads them; `contexts` narrows them. Raises ConfigError with all mistakes."""
    config = load(path)
    specs = load_contexts(config)
    unknown = sorted(set(contexts or ()) - set(specs))
    if unknown:
        raise ConfigError([f"{path} has no context {name!r}; it has {', '.join(specs) or 'none'}" for name in unknown])

    async def open_version(name: str, version: int | None) -> OpenContext:
        return await open_context(config, specs[name], version=version)

    names = tuple(name for name in specs if contexts is None or name in contexts)
    # In memory alone: the folder of `serve` takes one process.
    return Places(names, open_version, RungSettings(config.redis, config.serve.near_cache, config.serve.last_known))


class DirectMode:
    """Opens its contexts with the first lookup, and follows the version of each that serves, until it is closed.
    Belongs to one event loop."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._opening: asyncio.Task[None] | None = None
        self._ready: LookupService | None = None
        self._history: History | None = None
        self._keeper: VersionKeeper | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def get(self, context: str, key: str, options: LookupOptions) -> Bundle:
        if self._ready is None:
            options = await self._begin(options)
        assert self._ready is not None
        try:
            return Bundle(await self._ready.get(context, key, options))
        except CtxpipeError as error:
            raise client_error(error) from error

    async def get_many(self, context: str, keys: Sequence[str], options: LookupOptions) -> list[Bundle]:
        if self._ready is None:
            options = await self._begin(options)
        assert self._ready is not None
        try:
            return [Bundle(answer) for answer in await self._ready.get_many(context, keys, options)]
        except CtxpipeError as error:
            raise client_error(error) from error

    async def contexts(self) -> list[ContextInfo]:
        await self._begin(NO_OPTIONS)
        assert self._ready is not None
        return [await context_info(served) for served in self._ready.versions]

    async def by_id(self, context: str, bundle_id: str) -> PastBundle | None:
        await self._begin(NO_OPTIONS)
        assert self._history is not None
        try:
            return read_past((await self._history.find(context, bundle_id)).past.to_json())
        except NotKept:
            return None
        except CtxpipeError as error:
            raise client_error(error) from error

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            with suppress(asyncio.CancelledError, CtxpipeError):
                await self._opening
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping
        if self._keeper is not None:
            await self._keeper.close()

    async def _begin(self, options: LookupOptions) -> LookupOptions:
        """Opened once for all who ask, with what is left of the budget; one who gives up leaves it to the others. What
        failed is tried again by the next."""
        if self._ready is not None:
            return options
        budget_ms, began_s = options.budget_ms, asyncio.get_running_loop().time()
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="open-contexts")
        opening = self._opening
        await asyncio.wait((opening,), timeout=None if budget_ms is None else budget_ms / 1000)
        if not opening.done():
            raise DeadlineExceeded(f"Redis was not reached within {budget_ms:g} ms")
        try:
            opening.result()
        except ConfigError:
            raise
        except CtxpipeError as error:
            raise client_error(error) from error
        if budget_ms is None:
            return options
        left_ms = budget_ms - (asyncio.get_running_loop().time() - began_s) * 1000
        return msgspec.structs.replace(options, budget_ms=max(BUDGET_MS_MIN, left_ms))

    async def _open(self) -> None:
        opened: dict[str, OpenContext] = {}
        try:
            for name in self._places.names:
                opened[name] = await self._open_serving(name)
        except BaseException:
            for context in opened.values():
                await context.close()
            raise
        service = LookupService({name: context.served for name, context in opened.items()}, SystemClock())
        self._keeper = VersionKeeper(service, opened, self._open_serving)
        self._history = History(service, self._places.open_version)
        self._keeping = asyncio.create_task(self._keeper.run(), name="follow-versions")
        self._ready = service

    async def _open_serving(self, name: str, version: int | None = None) -> OpenContext:
        return await (await self._places.open_version(name, version)).with_rungs(self._places.rungs)


async def context_info(served: ServedContext) -> ContextInfo:
    """Raises ClientError."""
    spec, space = served.spec, None
    if served.spaces is not None and served.embeds:
        try:
            space = await served.spaces.serving()
        except CtxpipeError as error:
            raise client_error(error) from error
    key, serving = tuple(spec.entities[spec.root].key), spec.serving
    return ContextInfo(spec.context, spec.version, spec.description, key, serving.max_age_ms, serving.budget_ms, space)


def client_error(error: CtxpipeError) -> CtxpipeError:
    """The one table of the service's errors, as HTTP tells them by statuses."""
    if isinstance(error, lookups.UnknownContext):
        return UnknownContext(str(error))
    if isinstance(error, BadOptions):
        return BadRequest(error.mistakes)
    if isinstance(error, MalformedKey | BadId):
        return BadRequest([str(error)])
    if isinstance(error, LookupUnavailable) and isinstance(error.__cause__, TimeoutError):
        return DeadlineExceeded(str(error))
    return Unavailable(str(error))
