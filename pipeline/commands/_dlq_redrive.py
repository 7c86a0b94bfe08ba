"""`ctxpipe dlq redrive`: the composition root of pipeline.streams.redrive, with a bar while it works."""

from __future__ import annotations

import getpass
import json
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.commands._dlq_scope import Scope
    from pipeline.stores.redis_store import Stores
    from pipeline.streams.letter_choice import Choice
    from pipeline.streams.redrive import Redriven
    from pipeline.streams.redrive_texts import TextRequests
    from schemas.context import ContextSpec

REASONS_SHOWN = 5
REFUSED_SHOWN = 20


def who() -> str:
    """Who runs this command, as the machine knows them."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"?@{socket.gethostname()}"


async def redriven(scope: Scope, name: str, choice: Choice, by: str, wait_s: float, quiet: bool) -> Redriven:
    """Applies letters of the context `name`; of a source alone, all are refused.

    Raises EnvironmentProblem with what was done until then, ConfigError for a spec that was changed and its version
    was not.
    """
    from pipeline.core.errors import EnvironmentProblem, Retryable
    from pipeline.stores.redis_store import context_settings, open_stores
    from pipeline.streams.compose import context_stream
    from pipeline.streams.redrive import Redrive, Redriven

    if name not in scope.contexts:
        return Redriven(refused=choice.refused)
    async with AsyncExitStack() as stack:
        spec = scope.contexts[name]
        box = await stack.enter_async_context(scope.box(name))
        stores = await open_stores(context_settings(scope.config, spec))
        stack.push_async_callback(stores.close)
        if await stores.serving.known(spec) is None:
            raise EnvironmentProblem(
                f"no worker of {name} version {spec.version} has begun yet, and the first one decides how sections are "
                "composed. Start `ctxpipe worker`, then redrive: it may run meanwhile"
            )
        serving = await stores.serving.current()
        if serving not in (None, spec.version):
            told = f"version {serving} of {name} serves; the letters are applied to version {spec.version}"
            click.echo(f"note: {told}, which takes its place when it is complete", err=True)
        opened = await context_stream(scope.config, spec).open()
        stack.push_async_callback(opened.close)
        texts = await _texts(scope, spec, stores, wait_s)
        replicas = scope.config.kafka.replication_factor
        redrive = Redrive(box, opened.flow, texts, by=by, replication_factor=replicas)
        done = 0
        with _bar(len(choice.numbers), quiet) as show:

            def count(finished: int) -> None:
                nonlocal done
                done = finished
                show(finished)

            try:
                return await redrive.run(choice, count)
            except Retryable as error:
                left = f"{done:,} of {len(choice.numbers):,} letters are done with; run it again for the others"
                raise EnvironmentProblem(f"{error}. {left}") from error


async def _texts(scope: Scope, spec: ContextSpec, stores: Stores, wait_s: float) -> TextRequests:
    from pipeline.streams.redrive_texts import TextRequests

    kafka, embeds = scope.config.kafka, spec.embedding is not None
    waited: dict[str, Any] = {}
    if embeds:
        spaces = [one.space for one in await stores.spaces.all() if one.state != "retired"]
        waited = {"states": stores.vector_states, "spaces": spaces, "wait_s": wait_s}
    return TextRequests(kafka.bootstrap_servers, spec.context, spec.version, embeds, **waited, **kafka.security)


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("redriving"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def report(scope: Scope, results: dict[str, Redriven], attempts: dict[str, dict[int, int]], as_json: bool) -> bool:
    """Says what became of the letters; whether all of them are done with."""
    applied = sum(len(one.applied) for one in results.values())
    overtaken = sum(len(one.overtaken) for one in results.values())
    asked = sum(len(one.asked) for one in results.values())
    failed = [
        (scope.label(name, number), number, why, attempts[name].get(number, 0) + 1)
        for name, one in results.items()
        for number, why in sorted(one.failed.items())
    ]
    refused = [
        f"{scope.label(name, number)}: {why}"
        for name, one in results.items()
        for number, why in sorted(one.refused.items())
    ]
    if as_json:
        failures = [
            {"id": label, "number": number, "reason": why, "attempts": count} for label, number, why, count in failed
        ]
        told = {"redriven": applied + overtaken, "applied": applied, "overtaken": overtaken}
        click.echo(json.dumps({**told, "looked_at_again": asked, "failed": failures, "refused": refused}))
    else:
        _say(applied, overtaken, asked, [(label, why) for label, _, why, _ in failed], refused)
    return not failed and not refused


def _say(applied: int, overtaken: int, asked: int, failed: list[tuple[str, str]], refused: list[str]) -> None:
    for sentence in refused[:REFUSED_SHOWN]:
        click.echo(sentence, err=True)
    if len(refused) > REFUSED_SHOWN:
        click.echo(f"and {len(refused) - REFUSED_SHOWN:,} more that nothing was tried with", err=True)
    if applied or not (overtaken or asked or failed or refused):
        click.echo(f"{applied:,} applied")
    if overtaken:
        click.echo(f"{overtaken:,} overtaken: what is stored was newer already, nothing changed")
    if asked:
        click.echo(f"{asked:,} texts are looked at again; they wait on until it is known what becomes of each")
    if failed:
        click.echo(f"{len(failed):,} failed again and wait on:", err=True)
        first = {why: label for label, why in reversed(failed)}
        for why, count in Counter(why for _, why in failed).most_common(REASONS_SHOWN):
            click.echo(f"  {count:,} x {why} (e.g. {first[why]})", err=True)
