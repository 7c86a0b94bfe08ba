"""What `ctxpipe check` says of guarded calls: whether endpoints answer and know their models, without a paid call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from connectors.source import Finding
    from pipeline.core.guarding import Endpoint, GuardSection
    from pipeline.guard.http_client import HttpClient
    from pipeline.guard.prices import PriceTable
    from pipeline.guard.values import RawAnswer

TIMEOUT_S = 10.0
NAMES_SHOWN = 8
_LISTS_NOTHING = frozenset({404, 405, 501})


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def check_guard(section: GuardSection | None) -> list[Finding]:
    """Endpoints are asked for their list of models, side by side."""
    from pipeline.guard.http_client import HttpClient

    if section is None:
        return []
    async with HttpClient() as client:
        endpoints = section.config.endpoints
        found = await asyncio.gather(*(_check_endpoint(client, endpoint) for endpoint in endpoints))
    return [*found, *_check_prices(section), *_check_routing(section)]


async def _check_endpoint(client: HttpClient, endpoint: Endpoint) -> Finding:
    return judged(endpoint, await client.models(endpoint, time.monotonic() + TIMEOUT_S))


def judged(endpoint: Endpoint, answer: RawAnswer) -> Finding:
    """What the answer to GET /models says."""
    from connectors.source import Finding

    subject, at = f"guard: endpoint {endpoint.name}", endpoint.url
    if answer.failure is not None:
        mend = "Start it, or mend its url."
        if answer.failure == "tls":
            mend = "Give certificate_authority the authority that signed its certificate."
        return Finding("unreachable", subject, f"{at}: {answer.detail or answer.failure}", mend)
    if answer.status in (401, 403):
        return Finding("unfit", subject, f"{at} refuses the key ({answer.status})", "Mend its api_key.")
    if answer.status == 429:
        return Finding("warning", subject, f"{at} answers, and asks for a pause: the key's limit is used up")
    if answer.status >= 500:
        return Finding("unreachable", subject, f"{at} answers {answer.status}", "Look at its own log.")
    names = _names(answer.body) if answer.status == 200 else None
    if names is None:
        told = f"{at} answers, and lists no models; whether it has {endpoint.model} a call would tell"
        severity = "note" if answer.status in _LISTS_NOTHING else "warning"
        return Finding(severity, subject, told, "" if severity == "note" else "Is its url right, up to /v1?")
    if endpoint.model in names:
        return Finding("ok", subject, f"{at} answers and has {endpoint.model}")
    some = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    told = f"{at} answers, and {endpoint.model} is not among its models ({some or 'none'})"
    return Finding("warning", subject, told, "Mend its model; some servers list not all that they have.")


def _names(body: bytes) -> list[str] | None:
    try:
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _check_prices(section: GuardSection) -> Iterator[Finding]:
    from connectors.source import Finding
    from pipeline.guard.prices import read_prices

    try:
        prices = read_prices() if section.prices_file is None else read_prices(section.prices_file)
    except ConfigError as error:
        yield from (Finding("unfit", "guard: prices", mistake) for mistake in error.mistakes)
        return
    limited = bool(section.budget.tenant_cost_per_hour_max)
    for endpoint in section.endpoints:
        if not _priced(prices, endpoint):
            told = f"the price of {endpoint.price_name} is unknown, so costs are"
            told += "; with the budgets of this file it is passed over" if limited else ""
            mend = "Add it to a price table, and name that as guard.prices."
            yield Finding("warning" if limited else "note", f"guard: endpoint {endpoint.name}", told, mend)


def _priced(prices: PriceTable, endpoint: Endpoint) -> bool:
    return prices.of(endpoint.price_name, datetime.now(UTC).date()) is not None


def _check_routing(section: GuardSection) -> Iterator[Finding]:
    """As a service judges it that begins, and knows of nobody who was active before."""
    from connectors.source import Finding
    from pipeline.guard.routing.promotion import checked

    if section.routing_file is None:
        return
    priced = _known(section)
    try:
        found, _, refused = checked(section.routing_file, section.config, None, time.time_ns() // 1000, priced)
    except ConfigError as error:
        yield from (Finding("unfit", "guard: routing", mistake) for mistake in error.mistakes)
        return
    yield from (Finding("unfit", "guard: routing", told) for told in refused)
    if not refused:
        tasks = ", ".join(f"{task}: {one.active}" for task, one in sorted(found.config.tasks.items()))
        yield Finding("ok", "guard: routing", f"who answers: {tasks}")


def _known(section: GuardSection) -> Callable[[str], bool]:
    """Whether an endpoint has a price; a table that can't be read is told elsewhere."""
    from pipeline.guard.prices import read_prices

    try:
        prices = read_prices() if section.prices_file is None else read_prices(section.prices_file)
    except ConfigError:
        return lambda _: True
    return {endpoint.name: _priced(prices, endpoint) for endpoint in section.endpoints}.__getitem__
