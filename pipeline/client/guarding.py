"""What an application opens to have its model calls guarded as `guard:` of ctxpipe.yaml says, people included."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pipeline.core import telemetry
from pipeline.core.config import Config, load
from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.core.guarding import GuardSection
from pipeline.guard.escalation_records import PersonsAnswer
from pipeline.guard.guard import Function, Guard
from pipeline.guard.http_client import HttpClient
from pipeline.guard.prices import read_prices
from pipeline.guard.routing.pairs import PairFile, Score
from pipeline.guard.routing.routed_guard import RoutedGuard
from pipeline.guard.secrets import Secrets
from pipeline.guard.values import ModelRequest, Result
from pipeline.guard.webhook import Webhook
from pipeline.streams.escalation_answers import Answers
from pipeline.streams.escalation_deliveries import Deliveries
from pipeline.streams.escalation_queue import KafkaEscalations

STATE_FILE, PAIRS_FILE = "routing-state.json", "shadow-pairs.jsonl"
"""In the data directory, where a routing file is used: what is in force, and what active model and candidate said."""

logger = logging.getLogger(__name__)


class OpenGuard:
    """Made by `open_guard`. `guard` has the rest: states of breakers, and of a routing file what is in force."""

    def __init__(self, guard: Guard | RoutedGuard, answers: Answers) -> None:
        self.guard, self.answers = guard, answers

    async def call(self, request: ModelRequest) -> Result:
        """See Guard.call."""
        return await self.guard.call(request)

    async def answer(self, result: Result, timeout_s: float | None = None) -> PersonsAnswer | None:
        """What a person answered to a call that was escalated; None: nobody did within `timeout_s`, or it was not
        stored. `request.output.check_value(answer.value)` makes the request's own type of it."""
        if not result.escalation_id or result.escalation == "failed":
            return None
        return await self.answers.wait(result.escalation_id, timeout_s)


@asynccontextmanager
async def open_guard(
    config: Config | Path | str,
    functions: Mapping[str, Function] | None = None,
    *,
    scores: Mapping[str, Score] | None = None,
) -> AsyncIterator[OpenGuard]:
    """One per process and event loop. `functions` by task answer where no model does; `scores` by task judge a
    candidate of the routing file.

    Kafka may be away: then questions for people fail until it is back. Raises ConfigError for mistakes of the files,
    EnvironmentProblem where Kafka refuses us.
    """
    read = config if isinstance(config, Config) else load(config)
    section = read.guard
    if section is None:
        raise ConfigError([f"{read.path}: 'guard' is missing; write guard: {{endpoints: […], routes: {{…}}}}"])
    telemetry.configure_guest(os.environ)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(HttpClient())
        queue = KafkaEscalations(
            read.kafka.bootstrap_servers,
            section.escalations,
            Secrets(section.secrets),
            replication_factor=read.kafka.replication_factor,
            **read.kafka.security,
        )
        await stack.enter_async_context(queue)
        answers = Answers(
            read.kafka.bootstrap_servers,
            section.escalations,
            replication_factor=read.kafka.replication_factor,
            **read.kafka.security,
        )
        await stack.enter_async_context(answers)
        await _deliver(read, section, stack)
        yield OpenGuard(await _guard(read, section, client, queue, functions, scores, stack), answers)


async def _guard(
    config: Config,
    section: GuardSection,
    client: HttpClient,
    queue: KafkaEscalations,
    functions: Mapping[str, Function] | None,
    scores: Mapping[str, Score] | None,
    stack: AsyncExitStack,
) -> Guard | RoutedGuard:
    prices = read_prices() if section.prices_file is None else read_prices(section.prices_file)
    if section.routing_file is None:
        guard = Guard(section.config, client, queue, functions, prices=prices)
        stack.push_async_callback(guard.close)
        return guard
    folder = config.data_directory
    routed = RoutedGuard(
        section.config,
        section.routing_file,
        folder / STATE_FILE,
        client,
        queue,
        functions,
        scores=scores,
        pairs=PairFile(folder / PAIRS_FILE),
        prices=prices,
    )
    return await stack.enter_async_context(routed)


async def _deliver(config: Config, section: GuardSection, stack: AsyncExitStack) -> None:
    webhook = section.escalations.webhook
    if webhook is None or not webhook.in_process:
        return
    authority = section.certificate_authority(webhook.certificate_authority)
    deliveries = Deliveries(
        config.kafka.bootstrap_servers,
        section.escalations,
        await stack.enter_async_context(Webhook(webhook, authority)),
        replication_factor=config.kafka.replication_factor,
        security=config.kafka.security,
    )
    running = asyncio.create_task(_delivering(deliveries))

    async def end() -> None:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    stack.push_async_callback(end)


async def _delivering(deliveries: Deliveries) -> None:
    """Its end is told and ends nothing else: the questions wait in the queue."""
    try:
        await deliveries.run()
    except EnvironmentProblem as error:
        logger.error("questions for people are not posted to the webhook any more: %s", error)
