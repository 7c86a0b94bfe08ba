"""`ctxpipe escalations`: questions that no model could answer, with everything a person needs to answer them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


@click.group()
def command() -> None:
    """Answer in a model's stead: questions that came down the whole ladder of `pipeline.guard`.

    The application that asked gets the answer. Of two people who answer the same question the first one counts, and
    the other is told. Times are UTC.
    """


def _config(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)(
        function
    )


@command.command("list")
@click.option("--open", "only_open", is_flag=True, help="Only those that nobody answered yet.")
@click.option("--task", default="", help="Of this task.")
@click.option("--tenant", default="", help="Of this tenant.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per question.")
@_config
def list_questions(only_open: bool, task: str, tenant: str, limit: int, as_json: bool, config_path: str) -> None:
    """Show what was asked, of whom, why it came to people, and who answered, the newest last."""
    import asyncio

    from pipeline.commands._escalations import Chosen, listed
    from pipeline.commands._escalations_show import show_list

    chosen = Chosen(only_open=only_open, task=task, tenant=tenant, limit=limit)
    show_list(*asyncio.run(listed(config_path, chosen)), as_json=as_json)


@command.command("show")
@click.argument("question", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_config
def show_question(question: str, as_json: bool, config_path: str) -> None:
    """Show one question: the conversation, the data, what was tried and why it failed, and what the answer has to be.

    ID may be its first characters.
    """
    import asyncio

    from pipeline.commands._escalations import shown
    from pipeline.commands._escalations_show import show_whole

    show_whole(asyncio.run(shown(config_path, question)), as_json=as_json)


@command.command("answer")
@click.argument("question", metavar="ID")
@click.option("--value", "value", metavar="JSON", help="The answer; `-` reads it from stdin.")
@click.option("--text", "text", help="The answer to a question that asks for a text.")
@click.option("--note", default="", help="Why, for those who look later.")
@click.option("--by", default="", help="Who answers; default: user and host.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_config
def answer_question(
    question: str, value: str | None, text: str | None, note: str, by: str, as_json: bool, config_path: str
) -> None:
    """Answer a question: the application gets the value, checked against the question's schema.

    Exit code 1: somebody was first, and theirs counts; 2: the value is not what the question asks for.
    """
    import asyncio

    from pipeline.commands._dlq_redrive import who
    from pipeline.commands._escalations import answered, value_of
    from pipeline.commands._escalations_show import show_answered

    given = value_of(value, text)
    done = asyncio.run(answered(config_path, question, given, by or who(), note))
    show_answered(done, as_json=as_json)
    if not done.counts:
        click.get_current_context().exit(1)


@command.command("deliver")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve /metrics there; 0 takes a free one.")
@_config
def deliver(metrics_port: int | None, config_path: str) -> None:
    """Post each question to guard.escalations.webhook, at least once, until SIGTERM or Ctrl-C.

    For webhooks with in_process: false; any number may run, one of them delivers.
    """
    import asyncio

    from pipeline.commands._escalations import delivering

    asyncio.run(delivering(config_path, metrics_port))
