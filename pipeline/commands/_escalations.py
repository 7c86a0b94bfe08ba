"""The composition root of `ctxpipe escalations`: the section guard and Kafka → questions, answers, deliveries."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.guard.escalation_records import PersonsAnswer, Question, Standing
    from pipeline.streams.escalation_desk import EscalationDesk, Whole

AMBIGUOUS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which questions are listed; "" for all of them."""

    only_open: bool = False
    task: str = ""
    tenant: str = ""
    limit: int = 50

    def takes(self, standing: Standing) -> bool:
        heading = standing.heading
        if heading is None or (self.only_open and not standing.open):
            return False
        return self.task in ("", heading.task) and self.tenant in ("", heading.tenant or "")


@dataclass(frozen=True, slots=True)
class Answered:
    """`counts` False: `first` was there before."""

    question: Question
    counts: bool
    first: PersonsAnswer


async def listed(config_path: str, chosen: Chosen) -> tuple[list[Standing], int]:
    """The newest, oldest first, and how many there are beside them."""
    async with _desk(_configured(config_path)) as desk:
        found = [one for one in (await desk.look()).questions if chosen.takes(one)]
    return found[-chosen.limit :], max(0, len(found) - chosen.limit)


async def shown(config_path: str, name: str) -> Whole:
    async with _desk(_configured(config_path)) as desk:
        return await _whole(desk, name)


async def answered(config_path: str, name: str, value: Any, by: str, note: str) -> Answered:
    """Raises ConfigError for a value that does not fit."""
    from pipeline.streams.escalation_desk import Taken

    async with _desk(_configured(config_path)) as desk:
        question = (await _whole(desk, name)).question
        try:
            return Answered(question, True, await desk.answer(question, value, by, note))
        except Taken as taken:
            return Answered(question, False, taken.answer)


def value_of(value: str | None, text: str | None) -> Any:
    """Of the two options. Raises UsageError where there is not one of them, or it is no JSON."""
    from pipeline.guard.strict_json import InvalidOutput, parse

    if (value is None) == (text is None):
        raise click.UsageError("give the answer with --value JSON, or a text with --text")
    if value is None:
        return text
    if value == "-":
        value = sys.stdin.read()
    try:
        return parse(value)
    except InvalidOutput as error:
        example = json.dumps({"name": value[:20]})
        raise click.UsageError(
            f"--value: {error.detail}. Quote it for the shell, such as --value '{example}'; a text goes with --text"
        ) from None


async def delivering(config_path: str, metrics_port: int | None) -> None:
    """Until a signal. Raises ConfigError where there is no webhook."""
    import asyncio
    import signal

    from pipeline.core import logging as logs
    from pipeline.core import metrics
    from pipeline.guard.webhook import Webhook
    from pipeline.streams.escalation_deliveries import Deliveries

    config = _configured(config_path)
    assert config.guard is not None
    section = config.guard.escalations
    if section.webhook is None:
        raise ConfigError([f"{config.path}: guard.escalations has no webhook; write webhook: {{url: …, secret: …}}"])
    logs.configure(config.running.level)
    if metrics_port is not None:
        click.echo(f"escalations: /metrics at port {metrics.serve(metrics_port)}", err=True)
    async with Webhook(
        section.webhook, config.guard.certificate_authority(section.webhook.certificate_authority)
    ) as to:
        deliveries = Deliveries(
            config.kafka.bootstrap_servers,
            section,
            to,
            replication_factor=config.kafka.replication_factor,
            security=config.kafka.security,
        )
        running = asyncio.create_task(deliveries.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        click.echo(f"escalations: delivering {section.topic} to the webhook", err=True)
        try:
            await running
        except asyncio.CancelledError:
            click.echo("escalations: ended; what was not delivered waits for the next one", err=True)


def _configured(config_path: str) -> Config:
    from pipeline.core.config import load

    config = load(config_path)
    if config.guard is None:
        raise ConfigError(
            [f"{config.path}: 'guard' is missing, which says where questions for people are; see README, Guarded calls"]
        )
    return config


def _desk(config: Config) -> EscalationDesk:
    from pipeline.streams.escalation_desk import EscalationDesk

    assert config.guard is not None
    return EscalationDesk(config.kafka.bootstrap_servers, config.guard.escalations, **config.kafka.security)


async def _whole(desk: EscalationDesk, name: str) -> Whole:
    found = (await desk.look()).named(name)
    if len(found) > 1:
        some = ", ".join(one.heading.id for one in found[:AMBIGUOUS_SHOWN] if one.heading is not None)
        raise click.UsageError(f"{len(found)} questions begin with {name}: {some}; write more of it")
    whole = await desk.whole(found[0]) if found else None
    if whole is None:
        raise click.UsageError(f"no question has the id {name}; see `ctxpipe escalations list`")
    return whole
