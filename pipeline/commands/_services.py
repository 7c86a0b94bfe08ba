"""Opens what answers lookups and searches: all contexts of a configuration, kept on what serves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.commands._search import open_keeper
from pipeline.core.clock import SystemClock
from pipeline.core.config import load_contexts
from pipeline.core.errors import Retryable
from pipeline.lookup.admission import Admission
from pipeline.lookup.caught_up import CaughtUp
from pipeline.lookup.history import History
from pipeline.lookup.last_known import is_kept, name_of, wipe_others
from pipeline.lookup.open_rungs import RungSettings
from pipeline.lookup.opened import OpenContext, open_context, open_without_redis
from pipeline.lookup.search import SearchService
from pipeline.lookup.service import LookupService
from pipeline.lookup.versions import VersionKeeper
from schemas.context import ContextSpec

if TYPE_CHECKING:
    from pipeline.core.config import Config

_LOG = logging.getLogger("ctxpipe.lookup")


@dataclass(frozen=True)
class Services:
    """Both answer until the block of open_services ends. `specs`: of the versions that served when it began;
    `caught_up`: a check of readiness."""

    lookups: LookupService
    searches: SearchService
    specs: list[ContextSpec]
    history: History
    admission: Admission
    caught_up: CaughtUp


@asynccontextmanager
async def open_services(config: Config) -> AsyncIterator[Services]:
    """Raises ConfigError for mistakes in context files, Retryable and EnvironmentProblem when Redis is away or refuses
    at the start, unless the data directory has what was last known of every context; later it may come and go."""
    specs = load_contexts(config)

    async def open_version(name: str, version: int) -> OpenContext:
        return await open_context(config, specs[name], version=version)

    admission = Admission(
        config.serve.admission.in_flight_max, time.monotonic, lambda call: asyncio.get_running_loop().call_soon(call)
    )
    rungs = RungSettings(
        config.redis,
        config.serve.near_cache,
        config.serve.last_known,
        config.data_directory,
        lambda: admission.shedding,
    )

    async def open_serving(name: str, version: int) -> OpenContext:
        return await (await open_version(name, version)).with_rungs(rungs)

    opened: dict[str, OpenContext] = {}
    try:
        for name, spec in specs.items():
            opened[name] = await (await _open_first(config, spec)).with_rungs(rungs)
    except BaseException:
        for context in opened.values():
            await context.close()
        raise
    kept = [name_of(context.spec.context, context.spec.version) for context in opened.values()]
    await asyncio.to_thread(wipe_others, config.data_directory, kept)
    clock = SystemClock()
    lookups = LookupService({name: context.served for name, context in opened.items()}, clock)
    keeper = VersionKeeper(lookups, opened, open_serving)
    spaces = open_keeper(config, lookups, config.data_directory)
    searches = SearchService(lookups, spaces, clock)
    try:
        async with asyncio.TaskGroup() as tasks:
            keeping = [tasks.create_task(keeper.run()), tasks.create_task(spaces.run())]
            first = [context.spec for _, context in sorted(opened.items())]
            caught_up = CaughtUp(lookups, spaces, time.monotonic)
            yield Services(lookups, searches, first, History(lookups, open_version), admission, caught_up)
            for task in keeping:
                task.cancel()
    finally:
        searches.close()
        await spaces.close()
        await keeper.close()


async def _open_first(config: Config, spec: ContextSpec) -> OpenContext:
    try:
        return await open_context(config, spec)
    except Retryable as error:
        if not is_kept(config.data_directory, name_of(spec.context, spec.version)):
            raise
        _LOG.warning("%s: lookups answer what was last known, version %d: %s", spec.context, spec.version, error)
        return open_without_redis(config, spec)
