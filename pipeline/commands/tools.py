"""`ctxpipe tools`: contexts as functions for models that call them in the way of OpenAI's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.client import ContextInfo


@click.command()
@click.option("--url", metavar="URL", help="Of a running `ctxpipe serve`, http://host:port; default: as configured.")
@click.option("--json", "as_json", is_flag=True, help="The list as `tools` of a request takes it.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(url: str | None, as_json: bool, config_path: str) -> None:
    """Show what a model may call: for each context a function that gets its bundles by key, and one that searches
    them where they can be searched.

    Strict schemas: every argument is required, null where it may be left out, and nothing else is taken. Answer calls
    by `call_tool` of pipeline.client, which tells the model what is wrong with a call instead of failing.
    """
    import json

    from pipeline.client.tools import tool_schemas

    found = tool_schemas(_served(url) if url is not None else _configured(config_path))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for tool in found:
        _show(tool["function"])


def _served(url: str) -> list[ContextInfo]:
    from pipeline.client import Client, NotAllowed
    from pipeline.core.errors import ConfigError

    with Client(url) as client:
        try:
            return client.contexts()
        except NotAllowed as error:
            raise ConfigError([f"{url}: {error}; put a key that it knows into CTXPIPE_API_KEY"]) from None


def _configured(config_path: str) -> list[ContextInfo]:
    """No server is asked: whether a space answers is not known, so whatever declares an embedding can be searched."""
    from pipeline.client import ContextInfo
    from pipeline.core.config import load, load_contexts

    return [
        ContextInfo(
            context=spec.context,
            version=spec.version,
            description=spec.description,
            key=tuple(spec.entities[spec.root].key),
            max_age_ms=spec.serving.max_age_ms,
            budget_ms=spec.serving.budget_ms,
            space=None if spec.embedding is None else "",
        )
        for spec in load_contexts(load(config_path)).values()
    ]


def _show(function: dict[str, Any]) -> None:
    click.echo(f"{click.style(function['name'], bold=True)}: {function['description']}")
    for name, schema in function["parameters"]["properties"].items():
        click.echo(f"  {name}: {schema['description']}")
