"""`ctxpipe dlq`: records that could not be applied, why, whose bundles lack them, and how to apply them after all."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.streams.redrive import DeadLetterBox, Found

TEXT_MAX = 60


@click.group()
@click.argument("context")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
@click.pass_context
def command(ctx: click.Context, context: str, config_path: str) -> None:
    """Look at the dead letters of CONTEXT, and replay them."""
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
    rows = [("NUMBER", "WHEN", "RECORD", "REASON", "BUNDLES")]
    for one in found[-limit:]:
        letter = one.letter
        keys = ", ".join(letter.bundle_keys[:3]) + (" …" if len(letter.bundle_keys) > 3 else "")
        place = f"{letter.topic}/{letter.partition}@{letter.offset}"
        rows.append((str(one.number), _when(letter.failed_at_ms), place, letter.reason[:TEXT_MAX], keys or "-"))
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
        if name in ("key", "value") and value is not None:
            value = base64.b64decode(value).decode(errors="backslashreplace")
        click.echo(f"{name:>13}: {value}")


@command.command("redrive")
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]...")
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def redrive_letters(chosen: tuple[str, str], numbers: tuple[int, ...], every: bool, as_json: bool) -> None:
    """Apply the records after all, once what stopped them was mended.

    Repeating one is harmless: an older version never replaces a newer one. Exit code 1 when one still does not work.
    """
    import asyncio

    if every == bool(numbers):
        raise click.UsageError("name the letters to redrive by their numbers, or all of them with --all")
    found = _read(chosen)
    wanted = found if every else _named(found, numbers)
    refused = asyncio.run(_redriven(chosen, wanted))
    if as_json:
        click.echo(json.dumps({"redriven": len(wanted) - len(refused), "refused": refused}))
    else:
        for sentence in refused:
            click.echo(sentence, err=True)
        click.echo(f"{len(wanted) - len(refused)} records applied")
    if refused:
        click.get_current_context().exit(1)


async def _redriven(chosen: tuple[str, str], wanted: list[Found]) -> list[str]:
    from pipeline.core.config import load, load_contexts
    from pipeline.streams.compose import context_stream

    config = load(chosen[1])
    opened = await context_stream(config, load_contexts(config)[chosen[0]]).open()
    try:
        return await _box(chosen).redrive(wanted, opened.flow)
    finally:
        await opened.close()


def _box(chosen: tuple[str, str]) -> DeadLetterBox:
    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError
    from pipeline.streams.redrive import DeadLetterBox
    from schemas.topics import dead_letter_topic

    context, config_path = chosen
    config = load(config_path)
    known = load_contexts(config)
    if context not in known:
        raise ConfigError([f"no context {context!r}; the configuration has: {', '.join(sorted(known)) or 'none'}"])
    return DeadLetterBox(config.kafka.bootstrap_servers, dead_letter_topic(context))


def _read(chosen: tuple[str, str]) -> list[Found]:
    import asyncio

    return asyncio.run(_box(chosen).read())


def _named(found: list[Found], numbers: tuple[int, ...]) -> list[Found]:
    known = {one.number: one for one in found}
    missing = [str(number) for number in numbers if number not in known]
    if missing:
        raise click.UsageError(f"no dead letter has the number {', '.join(missing)}; see `ctxpipe dlq CONTEXT list`")
    return [known[number] for number in numbers]


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _as_dict(one: Found, with_record: bool) -> dict[str, Any]:
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
