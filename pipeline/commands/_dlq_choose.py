"""Which letters `ctxpipe dlq redrive` and `discard` are about, and the discard itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import click

from pipeline.commands._dlq_scope import Scope, moment_ms, scope_of
from pipeline.streams.decisions import Decision, ranges_of
from pipeline.streams.letter_choice import Choice, LetterFilter, choose


def scope_and_filter(name: str, config_path: str, filters: Mapping[str, Any]) -> tuple[Scope, LetterFilter]:
    """From the options that say which letters. Raises ConfigError, UsageError for a time that is none."""
    scope = scope_of(filters.get("own_config") or config_path, name)
    wanted = LetterFilter(
        reason=filters.get("reason", ""),
        tables=frozenset(filters.get("tables", ())),
        bundles=frozenset(filters.get("bundles", ())),
        since_ms=_moment("since", filters),
        until_ms=_moment("until", filters),
    )
    return scope, wanted


def single(scope: Scope) -> Scope:
    """Where no name was given and there is one context, that one."""
    return scope if scope.name or len(scope.contexts) != 1 else replace(scope, name=next(iter(scope.contexts)))


def _moment(option: str, filters: Mapping[str, Any]) -> int | None:
    text = filters.get(option)
    try:
        return None if text is None else moment_ms(text, _now_ms())
    except ValueError:
        raise click.UsageError(f"--{option}: {text!r} is no time; write 2h (ago), 3d, or 2026-11-30T08:00") from None


async def choices(
    scope: Scope, wanted: LetterFilter, words: Sequence[str], every: bool, for_redrive: bool
) -> dict[str, Choice]:
    """By name. Rows that connectors set aside are left out of a redrive of many, with a note."""
    if bool(words) + (every or wanted.narrows) != 1:
        raise click.UsageError("say which letters: by their numbers, by --reason, --table, …, or all with --all")
    numbers = scope.numbers(words)
    if not words and not scope.name and len(scope.names) > 1:
        raise click.UsageError(f"name the context or source: `ctxpipe dlq NAME …`; there are {', '.join(scope.names)}")
    chosen: dict[str, Choice] = {}
    async with AsyncExitStack() as stack:
        for name in numbers if words else scope.names:
            box = await stack.enter_async_context(scope.box(name))
            limited, verdicts = scope.limited(wanted, name), await box.verdicts()
            choice = await choose(box, verdicts, limited, numbers.get(name) if words else None, scope.keys_of)
            if choice.missing:
                raise missing(scope, [scope.label(name, number) for number in choice.missing])
            if for_redrive and not words and name != scope.name:
                if choice.numbers:
                    count = f"{len(choice.numbers):,} rows that the connector of {name} set aside"
                    click.echo(f"note: {count} can't be redriven; `ctxpipe dlq {name} list` shows them", err=True)
                continue
            chosen[name] = choice
    return chosen


async def discard(scope: Scope, chosen: Mapping[str, Choice], why: str, by: str) -> None:
    """Notes it beside the letters."""
    for name, choice in chosen.items():
        if choice.numbers:
            async with scope.box(name) as box:
                ranges = ranges_of(choice.with_repeats(choice.numbers))
                at_ms = max(_now_ms(), choice.newest_ms)
                decision = Decision(outcome="discarded", numbers=ranges, at_ms=at_ms, by=by, why=why)
                await box.decide([decision], scope.config.kafka.replication_factor)


def missing(scope: Scope, labels: Sequence[str]) -> click.UsageError:
    """To be raised for letters that are not there."""
    name = scope.name or "NAME"
    return click.UsageError(f"no dead letter has the number {', '.join(labels)}; see `ctxpipe dlq {name} list`")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
