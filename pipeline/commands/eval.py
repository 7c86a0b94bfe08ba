"""`ctxpipe eval`: the gate for changes of a model, a prompt, a flow or the pipeline; a group of lazy commands."""

from __future__ import annotations

import traceback
from types import MappingProxyType
from typing import Any

import click

from pipeline.commands._lazy import LazyGroup
from pipeline.core.errors import CtxpipeError

EVALS = MappingProxyType(
    {
        "init": "Begin a suite: a small one that runs and passes.",
        "run": "Run a suite and tell what became worse than its baseline.",
        "bless": "Make what a suite gives now its baseline, with a reason.",
        "workflow": "Print the gate for the pipelines of GitHub or GitLab.",
        "record": "Ask real models, and record what they answer.",
        "compare": "Tell whether one model is better than another, with the evidence for a swap.",
        "drift": "Ask real models again, and compare with what was recorded.",
    }
)
EXIT_HARNESS = 3


class Evals(LazyGroup):
    """2 says "inconclusive" here and 1 "regression": a mistake on the command line and a defect of our own must say
    neither, or a pipeline that lets inconclusive runs pass would let everything pass for a typing error.
    """

    lines, prefix = EVALS, "pipeline.commands.eval_"

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*args, **options)
        except click.UsageError as error:
            error.show()
            raise click.exceptions.Exit(EXIT_HARNESS) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            error.show()
        except CtxpipeError as error:
            click.echo(f"ctxpipe: {error}", err=True)
        except Exception:  # noqa: BLE001 - Python would exit with 1, which says "regression"
            click.echo(traceback.format_exc(), err=True)
            click.echo("ctxpipe: this is a defect of ctxpipe, not of the flow; nothing was decided", err=True)
        raise click.exceptions.Exit(EXIT_HARNESS)


@click.group(cls=Evals)
def command() -> None:
    """Run suites of deterministic cases, and compare models.

    Exit codes: 0 pass, 1 regression, 2 inconclusive, 3 nothing was decided (suite, recordings, command line).
    """
