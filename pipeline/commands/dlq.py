"""`ctxpipe dlq`: records that could not be applied, why, whose bundles are wrong for it, and what to do about them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

DEFAULT_CONFIG = "ctxpipe.yaml"
ALL_STATES = ("waiting", "failed", "asked", "applied", "overtaken", "discarded", "repeated")


@dataclass(slots=True)
class Chosen:
    """What stands before the command: the name of a context or source, empty for all of them."""

    name: str
    config_path: str


class NameFirst(click.Group):
    """A name may stand before the command, and need not: `dlq orders list`, `dlq list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [place for place, word in enumerate(args) if not word.startswith("-") and not _valued(args, place)]
        first, second = (args[words[place]] if len(words) > place else "" for place in (0, 1))
        if first in self.commands and second not in self.commands:
            args = [*args[: words[0]], "", *args[words[0] :]]
        return super().parse_args(ctx, args)


def _valued(args: Sequence[str], place: int) -> bool:
    return place > 0 and args[place - 1] == "--config"


@click.group(cls=NameFirst)
@click.argument("name", metavar="[CONTEXT|SOURCE]")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default=DEFAULT_CONFIG, show_default=True)
@click.pass_context
def command(ctx: click.Context, name: str, config_path: str) -> None:
    """Look at dead letters, replay them, or discard them: records that workers set aside, and rows that connectors did.

    Of a CONTEXT, these are its workers' letters, and its tables' rows that connectors set aside; of a SOURCE, its
    connector's. Without a name: all. Times are UTC.
    """
    ctx.obj = Chosen(name, config_path)


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which letters."""
    for option in reversed(
        (
            click.option("--reason", default="", metavar="TEXT", help="With this text in the reason or its digest."),
            click.option("--table", "tables", multiple=True, metavar="SCHEMA.TABLE", help="Of this table."),
            click.option("--bundle", "bundles", multiple=True, metavar="KEY", help="That make this bundle wrong."),
            click.option("--since", metavar="WHEN", help="Set aside since: 2h, 3d, 2026-11-30T08:00."),
            click.option("--until", metavar="WHEN", help="Set aside before."),
            click.option("--config", "own_config", help="As before the command."),
        )
    ):
        function = option(function)
    return function


@command.command("list")
@_filters
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="The newest so many.")
@click.option("--before", type=click.IntRange(0), metavar="NUMBER", help="Those before this one: the next page.")
@click.option("--all-states", is_flag=True, help="Also those that were redriven or discarded, and by whom.")
@click.option("--by-reason", is_flag=True, help="How many failed alike, instead of each.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per letter.")
@click.pass_obj
def list_letters(
    chosen: Chosen, /, limit: int, before: int | None, all_states: bool, by_reason: bool, as_json: bool, **filters: Any
) -> None:
    """Show reason, place and affected bundles of those that wait, the newest last."""
    from pipeline.commands._dlq_choose import scope_and_filter
    from pipeline.commands._dlq_look import show_list, show_reasons

    scope, wanted = scope_and_filter(chosen.name, chosen.config_path, filters)
    if before is not None and not scope.name:
        raise click.UsageError(
            "numbers count within one context or source: name it, `ctxpipe dlq NAME list --before …`"
        )
    if all_states:
        wanted = replace(wanted, states=frozenset(ALL_STATES))
    if by_reason:
        asyncio.run(show_reasons(scope, wanted, as_json))
    else:
        asyncio.run(show_list(scope, wanted, limit, before, all_states, as_json))


@command.command("show")
@click.argument("number")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, the record's bytes as base64.")
@click.option("--config", "own_config", help="As before the command.")
@click.pass_obj
def show_letter(chosen: Chosen, /, number: str, as_json: bool, own_config: str | None) -> None:
    """Show one dead letter with its record, what was decided of it, and the bundles that are wrong for it now."""
    from pipeline.commands._dlq_choose import scope_and_filter, single
    from pipeline.commands._dlq_look import whole_letter
    from pipeline.commands._dlq_show import show_letter as shown_plainly

    scope, _ = scope_and_filter(chosen.name, chosen.config_path, {"own_config": own_config})
    shown = asyncio.run(whole_letter(single(scope), number))
    if as_json:
        click.echo(json.dumps(shown))
    else:
        shown_plainly(shown)


@command.command("redrive")
@click.argument("numbers", nargs=-1, metavar="[NUMBER]...")
@_filters
@click.option("--all", "every", is_flag=True, help="All that wait.")
@click.option("--wait", "wait_s", type=click.FloatRange(0, 3600), default=15.0, show_default=True, metavar="SECONDS",
              help="How long to wait for what becomes of texts.")  # fmt: skip
@click.option("--by", default="", help="Who decided this; default: user and host.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def redrive_letters(
    chosen: Chosen, /, numbers: tuple[str, ...], every: bool, wait_s: float, by: str, as_json: bool, **filters: Any
) -> None:
    """Apply the records after all, once what stopped them was mended. Of a text that could not be made or embedded,
    the bundle is looked at again.

    Workers may run meanwhile, and repeating it is harmless: an older version never replaces a newer one. What fails
    again waits on with its new reason. Exit code 1 when one does.
    """
    from pipeline.commands._dlq_choose import choices, scope_and_filter, single
    from pipeline.commands._dlq_redrive import redriven, report, who

    scope, wanted = scope_and_filter(chosen.name, chosen.config_path, filters)
    scope = single(scope)

    async def work() -> bool:
        results, attempts = {}, {}
        for name, choice in (await choices(scope, wanted, numbers, every, for_redrive=True)).items():
            attempts[name] = choice.attempts
            results[name] = await redriven(scope, name, choice, by or who(), wait_s, as_json)
        return report(scope, results, attempts, as_json)

    if not asyncio.run(work()):
        click.get_current_context().exit(1)


@command.command("discard")
@click.argument("numbers", nargs=-1, metavar="[NUMBER]...")
@_filters
@click.option("--all", "every", is_flag=True, help="All that wait.")
@click.option("--because", required=True, metavar="TEXT", help="Why nobody needs them; kept with who and when.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--by", default="", help="Who decided this; default: user and host.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def discard_letters(
    chosen: Chosen,
    /,
    numbers: tuple[str, ...],
    every: bool,
    because: str,
    yes: bool,
    by: str,
    as_json: bool,
    **filters: Any,
) -> None:
    """Say that nobody needs these letters: they wait no more, and their bundles count as right.

    The record stays where it is until the topic drops it: `list --all-states` and `show` have it, with the reason.
    """
    from pipeline.commands._dlq_choose import choices, discard, scope_and_filter, single
    from pipeline.commands._dlq_redrive import who

    if not because.strip():
        raise click.UsageError("--because: say why nobody needs them")
    if not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("this asks before it discards: answer in a terminal, or say --yes")
    scope, wanted = scope_and_filter(chosen.name, chosen.config_path, filters)
    scope = single(scope)
    found = asyncio.run(choices(scope, wanted, numbers, every, for_redrive=False))
    count = sum(len(choice.numbers) for choice in found.values())
    bundles = len({key for choice in found.values() for key in choice.bundles})
    if count and not yes:
        reasons = sum((choice.reasons for choice in found.values()), start=Counter[str]())
        for reason, times in reasons.most_common(5):
            click.echo(f"  {times:,} x {reason}")
        click.confirm(f"Discard {count:,} letters, for which {bundles:,} bundles count as wrong?", abort=True)
    asyncio.run(discard(scope, found, because.strip(), by or who()))
    if as_json:
        click.echo(json.dumps({"discarded": count, "bundles": bundles}))
    else:
        click.echo(f"{count:,} discarded; {bundles:,} bundles no longer count as wrong for them")
