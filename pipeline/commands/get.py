"""`ctxpipe get`: bundles by key, for a person or a script."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.lookup.answer import Answer
    from schemas.context import ContextSpec

BUDGET_MS = 5_000.0
"""A person waits longer than an orchestrator."""


@click.command()
@click.argument("context")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="Of the spec; default: the one that serves.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per key, as the HTTP interface answers.")
@click.option("--text", "as_text", is_flag=True, help="What a model reads: the spec's text template on the bundle.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(
    context: str, keys: tuple[str, ...], version: int | None, as_json: bool, as_text: bool, config_path: str
) -> None:
    """Show the bundles of CONTEXT for each KEY (several key columns are joined by |).

    Exit code 1 when one is missing.
    """
    import asyncio

    spec, answers = asyncio.run(_answers(context, keys, version, config_path))
    for answer in answers:
        if as_text:
            click.echo(_text(spec, answer))
        elif as_json:
            click.echo(answer.to_json())
        else:
            _show(answer)
    if any(answer.status in ("missing", "fallback") for answer in answers):
        click.get_current_context().exit(1)


async def _answers(
    context: str, keys: tuple[str, ...], version: int | None, config_path: str
) -> tuple[ContextSpec, list[Answer]]:
    from pipeline.commands._contexts import open_context, spec_named
    from pipeline.core.clock import SystemClock
    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError
    from pipeline.lookup.service import LookupService, MalformedKey

    config = load(config_path)
    opened = await open_context(config, spec_named(load_contexts(config), context), version=version)
    try:
        service = LookupService({context: opened.served}, SystemClock(), BUDGET_MS)
        return opened.spec, await service.get_many(context, keys)
    except MalformedKey as error:
        raise ConfigError([str(error)]) from None
    finally:
        await opened.close()


def _text(spec: ContextSpec, answer: Answer) -> str:
    """With a last line in brackets where the token budget left something out."""
    import msgspec

    from pipeline.core.errors import ConfigError
    from pipeline.lookup.text import render_text

    if spec.text is None:
        raise ConfigError([f"context {spec.context} declares no text: add 'text: {{template: …}}' to its file"])
    if answer.bundle is None:
        return f"[{answer.context} {answer.key} is missing]"
    rendered = render_text(spec, msgspec.json.decode(answer.bundle))
    left_out = ", ".join(rendered.left_out)
    note = f"\n[left out for the token budget: {left_out}]" if left_out else ""
    return rendered.text + note + ("\n[cut to the token budget]" if rendered.cut else "")


_COLOURS = {"fresh": "green", "stale": "yellow", "missing": "red", "fallback": "yellow"}


def _show(answer: Answer) -> None:
    import msgspec

    ages = ", ".join(
        f"{source} {'age unknown' if age is None else f'{age:.0f} ms old'}" for source, age in answer.age_ms.items()
    )
    status = click.style(answer.status, fg=_COLOURS[answer.status])
    click.echo(f"{answer.context} {answer.key}: {status}, {ages}, spec version {answer.spec_version}")
    if answer.bundle is None:
        return
    # Only set out anew, so that every number stays as it is.
    text = msgspec.json.format(answer.bundle, indent=2).decode()
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax(text, "json", background_color="default"))
    else:
        click.echo(text)
