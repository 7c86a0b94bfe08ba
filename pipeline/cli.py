"""The command `ctxpipe`: maps each command to its module, and each expected failure to a message and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from types import MappingProxyType

import click

from pipeline.commands._lazy import LazyGroup
from pipeline.core.errors import CtxpipeError

# Name and one line each, kept here so that --help and completion import none of the modules behind them.
COMMANDS = MappingProxyType(
    {
        "up": "Start the local stack: Kafka, Postgres, Redis, and on request Cassandra or a model.",
        "down": "End the servers that `up` started.",
        "status": "Show the servers of the local stack.",
        "demo": "See real flights become context bundles, from nothing to verified.",
        "check": "Tell whether source, Kafka, Redis and contexts are fit, and how to mend them.",
        "connect": "Run the connector of a source: its changes into Kafka.",
        "connector": "Show the installed connectors, or begin a new one.",
        "worker": "Run the workers: changes from Kafka into bundles in Redis.",
        "serve": "Serve bundles over HTTP.",
        "tools": "Show contexts as functions that a model may call.",
        "mcp": "Offer bundles to models, by the Model Context Protocol.",
        "key": "Make, list and revoke API keys of the lookup service.",
        "get": "Show the bundle of one or more keys.",
        "search": "Search bundles by meaning.",
        "position": "Print where a source stands, for lookups that must see it.",
        "schema": "Print the JSON Schema of contexts, or of the cases of evaluation suites.",
        "canary": "Write rows into the sources, and tell whether lookups show them in time.",
        "collector": "Watch lag, sources and stages all the time, for Prometheus and `lag`.",
        "lag": "Show how far behind everything is, why, and whether it catches up.",
        "plan": "Tell how many of everything a load needs, and what breaks first.",
        "verify": "Compare bundles with what SQL on the sources gives.",
        "rebuild": "Build bundles anew from their sources.",
        "dlq": "Look at dead letters, and replay them.",
        "route": "Show which model answers which task, promote one that is proved, take one back.",
        "escalations": "Answer questions that no model could.",
        "space": "Look at embedding spaces, compare them, and choose the one that serves.",
        "eval": "Run evaluation suites, block what became worse, and prove that a model is better.",
        "bench": "Measure, and compare with bare tools in the same run.",
    }
)
REPEATING = "aiokafka"
"""A library that logs what it raises as well; we tell it once."""
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Commands(LazyGroup):
    lines = COMMANDS


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(metadata.version("ctxpipe"), prog_name="ctxpipe")
def cli() -> None:
    """Keeps the context of AI features ready: database changes become context bundles in Redis.

    Exit codes: 0 fine, 1 the answer is no, 2 usage or configuration, 3 the environment.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; what a person can mend is told without a traceback."""
    logging.getLogger(REPEATING).setLevel(logging.CRITICAL)
    try:
        result = cli.main(
            args=list(arguments) if arguments is not None else None, prog_name="ctxpipe", standalone_mode=False
        )
    except CtxpipeError as error:
        click.echo(f"ctxpipe: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("ctxpipe: interrupted", err=True)
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the installed command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
