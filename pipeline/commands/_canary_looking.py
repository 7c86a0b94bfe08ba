"""Looks canaries up as an orchestrator would: over HTTP, with the client of this project."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from pipeline.client.asynchronous import AsyncClient
from pipeline.client.bundle import Bundle
from pipeline.client.errors import ClientError, Unavailable
from pipeline.commands._canary_judging import CanarySeen, Shown, judge_shown
from pipeline.core.canary import KEY, NUMBER, PARTITION, SLOTS, WRITTEN, CanaryConfig, CanaryPlan, canary_plans
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import Poison

if TYPE_CHECKING:
    from pipeline.core.config import Config

FIRST_SLOT = 0
"""Always one of them; its bundle names the others."""
SLOTS_MAX = 1_000
"""So many keys a lookup takes at once."""
CONNECTIONS_MAX = 8
QUESTION = "canary"


class Canaries:
    """Of a configuration, for whoever only reads. Belongs to one event loop; close it."""

    def __init__(self, config: Config, clock: Clock) -> None:
        """Raises ConfigError for certificates that can't be used. Without a section `canary` there are none."""
        canary = config.canary
        self._clock = clock
        self._plans = [] if canary is None else canary_plans(canary, config.sources)
        self._budget_ms = 0.0 if canary is None else canary.timeout_s * 1000
        self._clients = {} if canary is None else {url: open_client(config, canary, url) for url in canary.url}

    async def read(self) -> list[CanarySeen]:
        """One for each source and address. What does not answer is told as `reason`; nothing is raised."""
        return [await self._look(plan, url, client) for plan in self._plans for url, client in self._clients.items()]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _look(self, plan: CanaryPlan, url: str, client: AsyncClient) -> CanarySeen:
        try:
            rows = await shown_rows(client, plan.context, [FIRST_SLOT], self._budget_ms)
            others = sorted({slot for row in rows for slot in row.slots} - {FIRST_SLOT})[:SLOTS_MAX]
            rows += await shown_rows(client, plan.context, others, self._budget_ms) if others else []
        except ClientError as error:
            return CanarySeen(
                source=plan.source,
                context=plan.context,
                url=url,
                up=False,
                age_s=None,
                limit_s=plan.limit_s,
                number=None,
                rows=0,
                reason=str(error),
            )
        return judge_shown(plan.source, plan.context, url, plan.limit_s, rows, self._clock.now_us())


async def read_canaries(config: Config, clock: Clock | None = None) -> list[CanarySeen]:
    """Once; who reads again and again keeps a `Canaries`."""
    async with AsyncExitStack() as stack:
        canaries = Canaries(config, clock or SystemClock())
        stack.push_async_callback(canaries.close)
        return await canaries.read()


def open_client(config: Config, canary: CanaryConfig, url: str) -> AsyncClient:
    """Nothing connects yet. Raises ConfigError, EnvironmentProblem without the package for HTTP."""
    files = {"ca": canary.ca, "certificate": canary.certificate, "key": canary.key}
    given: dict[str, Any] = {
        name: str(config.path.parent / file) for name, file in files.items() if file is not None and "https:" in url
    }
    if canary.api_key is not None:
        given["api_key"] = canary.api_key.get_secret_value()
    return AsyncClient(url, timeout_s=canary.timeout_s, connections_max=CONNECTIONS_MAX, **given)


async def shown_rows(client: AsyncClient, context: str, slots: Sequence[int], budget_ms: float) -> list[Shown]:
    """The rows that are there, however old. Raises ClientError."""
    bundles = await client.get_many(context, [str(slot) for slot in slots], budget_ms=budget_ms)
    return [row for row in map(row_of, bundles) if row is not None]


def row_of(bundle: Bundle) -> Shown | None:
    """None for what is missing or no row of a canary."""
    try:
        data = bundle.data
        slots = tuple(int(slot) for slot in data[SLOTS].split(","))
        return Shown(int(data[KEY]), slots, data[PARTITION], int(data[NUMBER]), int(data[WRITTEN]))
    except (Poison, KeyError, TypeError, ValueError, AttributeError):
        return None


async def found_rows(client: AsyncClient, context: str, rows: int, budget_ms: float) -> list[Shown]:
    """The rows whose vector was made from what they are now. Raises ClientError."""
    found = await client.search(context, QUESTION, k=rows, mode="vector", budget_ms=budget_ms)
    if found.mode != "vector":
        raise Unavailable(f"vectors answer no searches: {found.degraded or found.mode}")
    shown = [row_of(hit.bundle) for hit in found.hits if not hit.moved_on]
    return [row for row in shown if row is not None]


async def stated_age_s(client: AsyncClient, context: str, key: str, source: str, budget_ms: float) -> float | None:
    """How old a lookup calls what it knows of the source, whether there is a bundle or not. Raises ClientError."""
    bundle = await client.get(context, key, budget_ms=budget_ms)
    age_ms = bundle.age_ms.get(source)
    return None if age_ms is None else age_ms / 1000
