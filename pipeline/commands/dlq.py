"""`ctxpipe dlq`: records that could not be applied, why, whose bundles lack them, and how to apply them after all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from connectors.set_aside import SetAside
    from pipeline.core.config import Config
    from pipeline.streams.redrive import DeadLetterBox, Found

TEXT_MAX = 60


@dataclass(frozen=True, slots=True)
class Aside:
    """A row that a connector set aside, by its offset in the source's dead-letter topic."""

    number: int
    letter: SetAside
    failed_at_ms: int


@click.group()
@click.argument("context", metavar="CONTEXT|SOURCE")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
@click.pass_context
def command(ctx: click.Context, context: str, config_path: str) -> None:
    """Look at the dead letters of CONTEXT, and replay them; or at the rows that the connector of SOURCE set aside."""
    ctx.obj = (context, config_path)


@command.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per letter.")
@click.pass_obj
def list_letters(chosen: tuple[str, str], limit: int, as_json: bool) -> None:
    """Show reason, place and affected bundles of each."""
    found = _read(chosen)
    if as_json:
        for one in found[-limit:]:
            click.echo(json.dumps(_as_dict(one, with_record=False)))
        return
    if not found:
        click.echo("No dead letters.")
        return
    rows = [("NUMBER", "WHEN", "RECORD", "REASON", "BUNDLES"), *map(_line, found[-limit:])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(found) > limit:
        click.echo(f"{len(found) - limit} older ones are not shown; see --limit")


@command.command("show")
@click.argument("number", type=int)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, the record's bytes as base64.")
@click.pass_obj
def show_letter(chosen: tuple[str, str], number: int, as_json: bool) -> None:
    """Show one dead letter with its record."""
    import base64

    (one,) = _named(_read(chosen), (number,))
    if as_json:
        click.echo(json.dumps(_as_dict(one, with_record=True)))
        return
    for name, value in _as_dict(one, with_record=True).items():
        if name in ("key", "value") and value is not None and not isinstance(one, Aside):
            value = base64.b64decode(value).decode(errors="backslashreplace")
        click.echo(f"{name:>13}: {value}")


@command.command("redrive")
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]...")
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def redrive_letters(chosen: tuple[str, str], numbers: tuple[int, ...], every: bool, as_json: bool) -> None:
    """Apply the records after all, once what stopped them was mended. Of a text that could not be made or embedded,
    the bundle is looked at again.

    Repeating one is harmless: an older version never replaces a newer one. Exit code 1 when one still does not work.
    """
    import asyncio

    if every == bool(numbers):
        raise click.UsageError("name the letters to redrive by their numbers, or all of them with --all")
    found = _read(chosen)
    wanted = found if every else _named(found, numbers)
    refused = [_never_there(chosen[0], one) for one in wanted if isinstance(one, Aside)]
    records = [one for one in wanted if not isinstance(one, Aside)]
    asked = 0
    if records:
        more, asked = asyncio.run(_redriven(chosen, records))
        refused += more
    applied = len(wanted) - len(refused) - asked
    if as_json:
        click.echo(json.dumps({"redriven": applied + asked, "looked_at_again": asked, "refused": refused}))
    else:
        for sentence in refused:
            click.echo(sentence, err=True)
        if applied or not asked:
            click.echo(f"{applied} records applied")
        if asked:
            click.echo(f"{asked} texts are looked at again; `ctxpipe get` shows what becomes of each")
    if refused:
        click.get_current_context().exit(1)


async def _redriven(chosen: tuple[str, str], wanted: list[Found]) -> tuple[list[str], int]:
    """What could not be done, and of how many the texts are looked at again."""
    from pipeline.core.config import load, load_contexts
    from pipeline.streams.compose import context_stream
    from pipeline.streams.redrive import TextRequests

    config = load(chosen[1])
    spec = load_contexts(config)[chosen[0]]
    kafka, embeds = config.kafka, spec.embedding is not None
    texts = TextRequests(kafka.bootstrap_servers, spec.context, spec.version, embeds, **kafka.security)
    opened = await context_stream(config, spec).open()
    try:
        refused = await _box(chosen).redrive(wanted, opened.flow, texts)
        return refused, sum(texts.embeds and texts.concern(one.letter) for one in wanted)
    finally:
        await opened.close()


def _never_there(source: str, one: Aside) -> str:
    table = one.letter.table or one.letter.topic.removeprefix(f"{source}.")
    return (
        f"{one.number}: the connector set this row aside, so Kafka does not have it and nothing can be applied. Mend "
        f"what the reason says, then change the row or let `ctxpipe connect {source} --snapshot {table}` read it again"
    )


def _box(chosen: tuple[str, str]) -> DeadLetterBox:
    from pipeline.core.config import load
    from pipeline.streams.redrive import DeadLetterBox
    from schemas.topics import dead_letter_topic

    kafka = load(chosen[1]).kafka
    return DeadLetterBox(kafka.bootstrap_servers, dead_letter_topic(chosen[0]), **kafka.security)


def _read(chosen: tuple[str, str]) -> list[Found | Aside]:
    """What workers and what a connector wrote, oldest first: a context and a source may have the same name."""
    import asyncio

    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError

    name, config_path = chosen
    config = load(config_path)
    contexts = load_contexts(config)
    if name not in contexts and name not in config.sources:
        known = ", ".join(sorted({*contexts, *config.sources})) or "none"
        raise ConfigError([f"no context or source {name!r}; the configuration has: {known}"])
    found: list[Found | Aside] = []
    if name in contexts:
        found += asyncio.run(_box(chosen).read())
    if name in config.sources:
        found += asyncio.run(_set_aside(config, name))
    return sorted(found, key=lambda one: one.number)


async def _set_aside(config: Config, source: str) -> list[Aside]:
    from contextlib import suppress

    from connectors.assembly import retryable_is_fatal
    from connectors.publisher import read_topic
    from connectors.set_aside import decode_set_aside
    from pipeline.commands._sources import kafka_settings
    from schemas.topics import dead_letter_topic

    with retryable_is_fatal():
        records = await read_topic(kafka_settings(config), dead_letter_topic(source))
    found = []
    for record in records:
        with suppress(ValueError):  # a worker's, of the context with the same name
            found.append(Aside(record.offset, decode_set_aside(record.value), record.time_ms))
    return found


def _named(found: list[Found | Aside], numbers: tuple[int, ...]) -> list[Found | Aside]:
    known = {one.number: one for one in found}
    missing = [str(number) for number in numbers if number not in known]
    if missing:
        raise click.UsageError(f"no dead letter has the number {', '.join(missing)}; see `ctxpipe dlq CONTEXT list`")
    return [known[number] for number in numbers]


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _line(one: Found | Aside) -> tuple[str, str, str, str, str]:
    if isinstance(one, Aside):
        place, keys, time_ms = f"{one.letter.topic} {one.letter.key or ''}".strip(), "", one.failed_at_ms
    else:
        letter = one.letter
        keys = ", ".join(letter.bundle_keys[:3]) + (" …" if len(letter.bundle_keys) > 3 else "")
        place, time_ms = f"{letter.topic}/{letter.partition}@{letter.offset}", letter.failed_at_ms
    return str(one.number), _when(time_ms), place, one.letter.reason[:TEXT_MAX], keys or "-"


def _as_dict(one: Found | Aside, with_record: bool) -> dict[str, Any]:
    if isinstance(one, Aside):
        return _aside_as_dict(one, with_record)
    letter = one.letter
    shown: dict[str, Any] = {
        "number": one.number,
        "reason": letter.reason,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms,
        "failed_at_ms": letter.failed_at_ms,
        "digest": letter.digest,
        "bundle_keys": letter.bundle_keys,
        "value_bytes": letter.value_bytes,
        "truncated": letter.truncated,
    }
    if with_record:
        shown |= {"headers": letter.headers, "key": letter.key, "value": letter.value}
    return shown


def _aside_as_dict(one: Aside, with_record: bool) -> dict[str, Any]:
    letter = one.letter
    shown: dict[str, Any] = {
        "number": one.number,
        "reason": letter.reason,
        "topic": letter.topic,
        "table": letter.table,
        "key": letter.key,
        "lsn": letter.lsn,
        "size": letter.size,
        "failed_at_ms": one.failed_at_ms,
    }
    return {**shown, "row": letter.row} if with_record else shown
