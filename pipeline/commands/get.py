"""`ctxpipe get`: bundles by key, for a person or a script."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.commands._get_past import Records
    from pipeline.lookup.answer import Answer
    from pipeline.lookup.lineage import Lineage
    from schemas.context import ContextSpec

BUDGET_MS = 5_000.0
"""A person waits longer than an orchestrator."""


@click.command()
@click.argument("context")
@click.argument("keys", nargs=-1, metavar="KEY...")
@click.option("--id", "bundle_id", metavar="ID", help="Instead of keys: the bytes of the answer that had this id.")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="Of the spec; default: the one that serves.")
@click.option("--position", "positions", multiple=True, metavar="TOKEN", help="What the answer must have seen.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per key, as the HTTP interface answers.")
@click.option(
    "--lineage", is_flag=False, flag_value="", metavar="[FIELD]", help="Where every value, or a field's, came from."
)
@click.option("--text", "as_text", is_flag=True, help="What a model reads: the spec's text template on the bundle.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(
    context: str,
    keys: tuple[str, ...],
    version: int | None,
    positions: tuple[str, ...],
    bundle_id: str | None,
    as_json: bool,
    lineage: str | None,
    as_text: bool,
    config_path: str,
) -> None:
    """Show the bundles of CONTEXT for each KEY (key columns are joined by |), or what an answer of the past held.

    Exit code 1 when one is missing, or no longer kept.
    """
    import asyncio

    if bool(keys) == (bundle_id is not None):
        raise click.UsageError("give KEY, or --id and no KEY")
    if lineage is not None and as_text:
        raise click.UsageError("--lineage is of values, and --text is one text; give one of them")
    if bundle_id is not None or lineage is not None:
        _of_the_past(context, keys, version, bundle_id, lineage, as_json, as_text, config_path)
        return
    spec, answers = asyncio.run(_answers(context, keys, version, positions, config_path))
    for answer in answers:
        if as_text:
            click.echo(_text(spec, answer, config_path))
        elif as_json:
            click.echo(answer.to_json())
        else:
            _show(answer)
    if any(answer.status in ("missing", "fallback") for answer in answers):
        click.get_current_context().exit(1)


def _of_the_past(
    context: str,
    keys: tuple[str, ...],
    version: int | None,
    bundle_id: str | None,
    lineage: str | None,
    as_json: bool,
    as_text: bool,
    config_path: str,
) -> None:
    import asyncio

    from pipeline.commands import _get_past as past
    from pipeline.lookup.history import NotKept

    try:
        if bundle_id is None:
            found = asyncio.run(past.present_lineages(context, keys, version, lineage or None, config_path))
            _show_lineages(context, keys, found, as_json)
        elif lineage is not None:
            told = asyncio.run(past.past_lineage(context, bundle_id, lineage or None, config_path))
            _show_lineages(context, (bundle_id,), told, as_json)
        else:
            spec, bundle = asyncio.run(past.past_bundle(context, bundle_id, config_path))
            if as_text:
                click.echo(_text_of(spec, bundle.bundle, config_path))
            elif as_json:
                click.echo(bundle.to_json())
            else:
                past.show_past(bundle)
    except NotKept as error:
        click.echo(str(error), err=True)
        click.get_current_context().exit(1)


def _show_lineages(
    context: str, keys: Sequence[str], found: Sequence[tuple[Lineage, Records] | None], as_json: bool
) -> None:
    from pipeline.commands._get_past import show_lineage

    for key, one in zip(keys, found, strict=True):
        if one is None:
            click.echo(f"{context} {key} is missing", err=True)
        elif as_json:
            click.echo(one[0].to_json(one[1]))
        else:
            show_lineage(*one)
    if None in found:
        click.get_current_context().exit(1)


async def _answers(
    context: str, keys: tuple[str, ...], version: int | None, positions: tuple[str, ...], config_path: str
) -> tuple[ContextSpec, list[Answer]]:
    from pipeline.commands._contexts import spec_named
    from pipeline.core.clock import SystemClock
    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError
    from pipeline.lookup.keys import MalformedKey
    from pipeline.lookup.opened import open_context
    from pipeline.lookup.options import BadOptions, LookupOptions
    from pipeline.lookup.service import LookupService

    config = load(config_path)
    opened = await open_context(config, spec_named(load_contexts(config), context), version=version)
    try:
        service = LookupService({context: opened.served}, SystemClock(), BUDGET_MS)
        return opened.spec, await service.get_many(context, keys, LookupOptions(positions=positions))
    except MalformedKey as error:
        raise ConfigError([str(error)]) from None
    except BadOptions as error:
        raise ConfigError(error.mistakes) from None
    finally:
        await opened.close()


def _text(spec: ContextSpec, answer: Answer, config_path: str) -> str:
    """With a last line in brackets where the token budget left something out."""
    missing = f"[{answer.context} {answer.key} is missing]"
    if answer.bundle is None and spec.text is not None:
        return missing
    return _text_of(spec, answer.bundle, config_path)


def _text_of(spec: ContextSpec, bundle: bytes | None, config_path: str) -> str:
    from pipeline.core.config import load
    from pipeline.core.errors import ConfigError
    from pipeline.streams.token_counting import token_counting
    from pipeline.text import decode_bundle, render_text

    if spec.text is None or bundle is None:
        raise ConfigError([f"context {spec.context} declares no text: add 'text: {{template: …}}' to its file"])
    rendered = render_text(spec, decode_bundle(bundle), token_counting(spec, load(config_path).embedding).count)
    left_out = ", ".join(rendered.left_out)
    note = f"\n[left out for the token budget: {left_out}]" if left_out else ""
    return rendered.text + note + ("\n[cut to the token budget]" if rendered.cut else "")


_VECTOR_COLOURS = {"current": "green", "pending": "yellow", "failing": "red", "none": None, "unknown": "yellow"}
_COLOURS = {"fresh": "green", "stale": "yellow", "partial": "yellow", "missing": "red", "fallback": "yellow"}


def _show(answer: Answer) -> None:
    import msgspec

    ages = ", ".join(
        f"{source} {'age unknown' if age is None else f'{age:.0f} ms old'}" for source, age in answer.age_ms.items()
    )
    status = click.style(answer.status, fg=_COLOURS[answer.status])
    click.echo(f"{answer.context} {answer.key}: {status}, {ages}, spec version {answer.spec_version}")
    for one in answer.not_reached:
        click.echo(f"position not reached: {one.reason}", err=True)
    if answer.bundle is None:
        return
    if answer.embedding is not None:
        label, space = answer.embedding, answer.embedding.space
        place, problem = f" in space {space}" if space else "", f": {label.problem}" if label.problem else ""
        click.echo(f"vector {click.style(label.state, fg=_VECTOR_COLOURS[label.state])}{place}{problem}")
    # Only set out anew, so that every number stays as it is.
    text = msgspec.json.format(answer.bundle, indent=2).decode()
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax(text, "json", background_color="default"))
    else:
        click.echo(text)
