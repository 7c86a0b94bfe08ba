"""Measures sources for sections left to `compose: auto`, for `worker` that decides and `check` that shows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.composition import Choice, choose, composition_of
from pipeline.core.errors import CtxpipeError, Retryable
from schemas.context import ContextSpec
from schemas.fan_out import FanOut

if TYPE_CHECKING:
    from pipeline.core.config import Config

MEASURE_TIMEOUT_S = 10.0
"""A worker's start waits no longer for a source that is away or whose tables are too large to count at once."""
REDIS_TIMEOUT_S = 2.0

_LOG = logging.getLogger("ctxpipe.composition")


async def propose(
    config: Config, specs: Iterable[ContextSpec], timeout_s: float = MEASURE_TIMEOUT_S
) -> dict[str, dict[str, str]]:
    """Context → a composition of its sections. Contexts that have nothing to decide, or whose version has state and
    so is decided, are left out. Raises ConfigError for a changed spec under the version number of existing state.
    """
    proposals = {}
    for spec in specs:
        if await _decided(config, spec):
            continue
        fan_outs, reasons = await measure(config, spec, timeout_s)
        for reason in reasons:
            _LOG.warning("%s: sections left to auto follow the default rule: %s", spec.context, reason)
        choices = choose(spec, fan_outs)
        measured = {path: choice for path, choice in choices.items() if choice.section.compose == "auto"}
        if fan_outs and measured:
            _LOG.info("%s version %d: %s", spec.context, spec.version, _sentence(measured))
            proposals[spec.context] = composition_of(measured)
    return proposals


async def measure(config: Config, spec: ContextSpec, timeout_s: float) -> tuple[dict[str, FanOut], list[str]]:
    """Fan-out by section path, from every source that can count and answers in time; and why others gave none."""
    names = sorted({entity.source for entity in spec.entities.values()} & set(config.sources))
    found = await asyncio.gather(*(_measure_source(config, spec, name, timeout_s) for name in names))
    fan_outs: dict[str, FanOut] = {}
    for measured in found:
        if not isinstance(measured, str):
            fan_outs.update(measured)
    return fan_outs, [reason for reason in found if isinstance(reason, str)]


async def _measure_source(config: Config, spec: ContextSpec, name: str, timeout_s: float) -> dict[str, FanOut] | str:
    from connectors.source import MeasuringFanOut
    from pipeline.commands._sources import configured_sources

    try:
        configured = configured_sources(config, [name])[0]
        if not configured.plugin.can(MeasuringFanOut):
            return {}
        source = configured.source()
        assert isinstance(source, MeasuringFanOut), "its class can"
        async with asyncio.timeout(timeout_s):
            return await source.measure_fan_out(spec)
    except TimeoutError:
        return f"source {name} did not answer within {timeout_s:g} s"
    except CtxpipeError as error:
        return f"source {name}: {error}"


async def _decided(config: Config, spec: ContextSpec) -> bool:
    """Whether workers of this version have agreed before. An absent Redis is waited for by the workers, not here."""
    from pipeline.stores.redis_client import RedisClient
    from pipeline.stores.redis_store import RedisServing, context_settings

    client = RedisClient(context_settings(config, spec, REDIS_TIMEOUT_S))
    try:
        return await RedisServing(client).known(spec) is not None
    except Retryable:
        return False
    finally:
        await client.close()


def _sentence(choices: dict[str, Choice]) -> str:
    return ", ".join(f"{path} is {_reason(choice)}" for path, choice in choices.items())


def _reason(choice: Choice) -> str:
    if choice.inside is not None:
        return f"part of {choice.inside}"
    verb = "copied" if choice.composition == "copy" else "linked"
    return verb + (" (not measured)" if choice.copied is None else f" (up to {choice.copied.most:,} show one)")
