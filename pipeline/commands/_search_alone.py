"""A search where no `serve` runs: a replica of its own in this process, read from Kafka, and gone afterwards."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.lookup.options import BadOptions
from pipeline.lookup.search import SearchService, UnknownBundle
from pipeline.lookup.search_parts import SearchUnavailable
from pipeline.lookup.search_request import BadSearch
from pipeline.lookup.service import LookupService
from pipeline.lookup.spaces import OpenSpace, SpaceKeeper

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.lookup.search_request import SearchRequest
    from schemas.context import ContextSpec

OPEN_TIMEOUT_S = 600.0
TROUBLE_S = 10.0
TELL_EVERY_S = 1.0
_STEP_S = 0.05


async def search_alone(config: Config, spec: ContextSpec, request: SearchRequest) -> bytes:
    """Raises ConfigError for a bad question, EnvironmentProblem where Kafka, Redis or the engine cannot be had."""
    from pipeline.commands._search import open_keeper
    from pipeline.core.clock import SystemClock
    from pipeline.lookup.opened import open_context

    opened = await open_context(config, spec)
    lookups = LookupService({spec.context: opened.served}, SystemClock(), request.budget_ms)
    with tempfile.TemporaryDirectory(prefix="ctxpipe-search-") as folder:
        keeper = open_keeper(config, lookups, Path(folder))
        searches = SearchService(lookups, keeper, SystemClock())
        try:
            await _wait_until_ready(keeper, spec.context, bool(request.text) and request.mode != "lexical")
            return (await searches.search(spec.context, request)).to_json()
        except (BadSearch, BadOptions, UnknownBundle) as error:
            raise ConfigError([str(error)] if isinstance(error, UnknownBundle) else error.mistakes) from None
        except SearchUnavailable as error:
            raise EnvironmentProblem(str(error)) from error
        finally:
            searches.close()
            await keeper.close()
            await opened.close()


async def _wait_until_ready(keeper: SpaceKeeper, context: str, embeds: bool) -> None:
    """Tells how far it is. An engine that cannot be opened is no reason to wait: words are searched without it."""
    await keeper.look()
    serving = keeper.serving(context)
    if serving is None:
        raise EnvironmentProblem(_why_none(keeper, context))
    space, waited_s, troubled_s = serving.space, 0.0, 0.0
    while not (space.replica.vectors_loaded and space.replica.texts_loaded and (not embeds or _engine_told(space))):
        await asyncio.sleep(_STEP_S)
        waited_s += _STEP_S
        troubled_s = troubled_s + _STEP_S if space.replica.problem else 0.0
        if troubled_s >= TROUBLE_S:
            raise EnvironmentProblem(f"space {space.space} cannot be read: {space.replica.problem}")
        if waited_s >= OPEN_TIMEOUT_S:
            raise EnvironmentProblem(f"space {space.space} was not read within {OPEN_TIMEOUT_S:g} s; start a `serve`")
        if waited_s % TELL_EVERY_S < _STEP_S:
            _tell(space)


def _engine_told(space: OpenSpace) -> bool:
    return space.embedder is not None or "cannot be opened" in space.engine_problem


def _why_none(keeper: SpaceKeeper, context: str) -> str:
    told = "; ".join(sorted(keeper.told))
    if told:
        return told
    return (
        f"no embedding space of {context} serves yet. A worker builds the first one and promotes it when it is "
        "complete; `ctxpipe space list` shows how far it is"
    )


def _tell(space: OpenSpace) -> None:
    behind = space.replica.behind_records
    with suppress(OSError):
        what = space.replica.problem or f"{'?' if behind is None else f'{behind:,}'} records to go"
        click.echo(f"reading space {space.space}: {what}", err=True)
