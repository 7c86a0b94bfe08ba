"""`ctxpipe search`: bundles by meaning, for a person or a script; from a running `serve`, else from Kafka itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.lookup.search_request import SearchRequest

BUDGET_MS = 10_000.0
"""A person waits longer than an orchestrator."""


@click.command()
@click.argument("context")
@click.argument("text", required=False)
@click.option("--key", metavar="KEY", help="More like the bundle with this key, instead of TEXT.")
@click.option("-k", "k", type=int, default=10, show_default=True, help="How many.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="field=value, also < <= > >=, on a field that the spec marks; several must all hold, and several = on one "
    "field stand for any of them.",
)
@click.option("--min-score", type=float, metavar="COSINE", help="The least cosine, -1 to 1.")
@click.option("--mode", type=click.Choice(["auto", "vector", "lexical", "hybrid"]), default="auto", show_default=True)
@click.option(
    "--position", "positions", multiple=True, metavar="TOKEN", help="What the hits must have seen; repeat it."
)
@click.option("--url", help="Of a running `ctxpipe serve`; default: the configured address, if it answers.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON, as the HTTP interface answers.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(
    context: str,
    text: str | None,
    key: str | None,
    k: int,
    filters: tuple[str, ...],
    min_score: float | None,
    mode: Any,
    positions: tuple[str, ...],
    url: str | None,
    as_json: bool,
    config_path: str,
) -> None:
    """Search the bundles of CONTEXT for what TEXT means, e.g. "wide-body planes built before 1990".

    Exit code 1 when nothing is found.
    """
    from pipeline.commands._search_filters import conditions_of
    from pipeline.core.config import load
    from pipeline.lookup.options import POSITIONS_MAX
    from pipeline.lookup.search_request import SearchRequest

    conditions, mistakes = conditions_of(filters)
    if len(positions) > POSITIONS_MAX:
        mistakes.append(f"{len(positions)} positions; at most {POSITIONS_MAX} are taken")
    request = SearchRequest(
        text=text,
        key=key,
        k=k,
        conditions=tuple(conditions),
        min_score=min_score,
        mode=mode,
        budget_ms=BUDGET_MS,
        position=tuple(dict.fromkeys(positions)),
        mistakes=tuple(mistakes),
    )
    answer = _answer(load(config_path), context, request, url)
    if as_json:
        click.echo(answer)
    else:
        from pipeline.commands._search_show import show

        show(answer, text or "", sys.stdout.isatty())
    import msgspec

    if not msgspec.json.decode(answer)["hits"]:
        click.get_current_context().exit(1)


def _answer(config: Config, context: str, request: SearchRequest, url: str | None) -> bytes:
    """Raises ConfigError for what is wrong with the question, EnvironmentProblem where nobody can answer."""
    import asyncio

    from pipeline.commands._contexts import spec_named
    from pipeline.commands._search_client import ask_server
    from pipeline.core.config import load_contexts
    from pipeline.core.errors import ConfigError
    from pipeline.lookup.search_request import request_mistakes

    spec = spec_named(load_contexts(config), context)
    if spec.embedding is None:
        raise ConfigError([f"context {context} declares no embedding: add one to its file to search it"])
    mistakes = request_mistakes(request, spec, None, None)
    if mistakes:
        raise ConfigError(mistakes)
    scheme = "http" if config.serve.tls is None else "https"
    own = f"{scheme}://{config.serve.host}:{config.serve.port}"
    answered = ask_server(url or own, context, request, url is not None)
    if answered is not None:
        return answered
    from pipeline.commands._search_alone import search_alone

    return asyncio.run(search_alone(config, spec, request))
