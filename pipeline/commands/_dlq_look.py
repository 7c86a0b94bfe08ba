"""`ctxpipe dlq list` and `show`: looks into the boxes of a scope and says what is there."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import _dlq_show
from pipeline.commands._dlq_affected import affected_now
from pipeline.commands._dlq_choose import missing
from pipeline.core.errors import Retryable
from pipeline.streams.decisions import Verdicts, state_of
from pipeline.streams.letter_choice import LetterFilter, Listed, by_reason, newest
from pipeline.streams.letters import decode_letter

if TYPE_CHECKING:
    from pipeline.commands._dlq_scope import Scope
    from pipeline.streams.letter_box import DeadLetterBox


async def show_list(
    scope: Scope, wanted: LetterFilter, limit: int, before: int | None, all_states: bool, as_json: bool
) -> None:
    """The newest `limit` of all names together, the newest last; what is to be said of expiry goes below."""
    found: list[tuple[str, Listed]] = []
    notes: list[str] = []
    more, counted = False, 0
    for name in scope.names:
        async with scope.box(name) as box:
            verdicts = await box.verdicts()
            start = before if name == scope.name else None
            listed, further = await newest(box, verdicts, scope.limited(wanted, name), limit, start, scope.keys_of)
            found += [(name, one) for one in listed]
            more = more or further
            lines, waiting = await _standing(box, verdicts, name)
            notes, counted = notes + lines, counted + waiting
    found.sort(key=lambda one: (one[1].found.failed_at_ms, one[1].found.number))
    more = more or len(found) > limit
    found = found[-limit:]
    labelled = [(scope.label(name, one.found.number), one) for name, one in found]
    if as_json:
        names = [name for name, _ in found]
        _dlq_show.as_lines([_dlq_show.listed_object(name, *one) for name, one in zip(names, labelled, strict=True)])
    elif found:
        with_state = all_states or any(one.state != "waiting" for _, one in found)
        _dlq_show.show_table(*_dlq_show.letter_rows(labelled, with_state), 2 if with_state else None)
        if more:
            page = f"--before {found[0][1].found.number}" if scope.name == found[0][0] else "--limit"
            click.echo(f"{'' if all_states else f'about {counted:,} wait; '}older ones: {page}")
    else:
        click.echo("No dead letters." if not wanted.narrows else "No such dead letters.")
    for note in notes:
        click.echo(f"note: {note}", err=as_json)


async def _standing(box: DeadLetterBox, verdicts: Verdicts, name: str) -> tuple[list[str], int]:
    """What is to be said of a topic's retention, and about how many letters wait in it."""
    extent = await box.extent()
    if extent is None:
        return [], 0
    closed = verdicts.closed_below(extent.first)
    oldest = verdicts.first_open(extent.first, extent.end)
    oldest_ms = None
    if oldest is not None:
        async for part in box.oldest_first(oldest, min(extent.end, oldest + 1)):
            oldest_ms = part[0].written_ms if part else None
    lines = _dlq_show.retention_lines(name, await box.retention(), oldest_ms, extent.first - closed, _now_ms())
    return lines, extent.end - extent.first - (verdicts.closed_below(extent.end) - closed)


async def show_reasons(scope: Scope, wanted: LetterFilter, as_json: bool) -> None:
    """How many failed alike, the most frequent first."""
    groups = []
    for name in scope.names:
        async with scope.box(name) as box:
            found = await by_reason(box, await box.verdicts(), scope.limited(wanted, name), scope.keys_of)
            groups += [(name, group) for group in found]
    groups.sort(key=lambda one: -one[1].count)
    if as_json:
        _dlq_show.as_lines([_dlq_show.group_object(name, group) for name, group in groups])
    elif groups:
        _dlq_show.show_table(*_dlq_show.reason_rows([(scope.label(name, one.newest), one) for name, one in groups]))
    else:
        click.echo("No dead letters." if not wanted.narrows else "No such dead letters.")


async def whole_letter(scope: Scope, word: str) -> dict[str, Any]:
    """A letter with its record, what was decided of it, and which bundles are wrong for it now. Raises UsageError
    where it is not there."""
    ((name, (number,)),) = scope.numbers([word]).items()
    label = scope.label(name, number)
    async with scope.box(name) as box:
        value = await box.raw(number)
        if value is None:
            raise missing(scope, [label])
        history = [one async for one, _ in box.decisions(0) if any(a <= number <= b for a, b in one.numbers)]
        found = [one async for part in box.oldest_first(number, number + 1) for one in part]
    if not found:
        raise missing(scope, [label])
    history = [one for one in history if one.at_ms >= found[0].written_ms]
    decision = history[-1] if history else None
    heading = found[0].letter
    letter = None if heading.by_connector else decode_letter(value)
    listed = Listed(found[0], state_of(decision), decision, scope.keys_of(heading))
    shown = _dlq_show.listed_object(name, label, listed)
    shown["history"] = [_dlq_show.decision_object(one) for one in history]
    try:
        shown["affected"] = _dlq_show.affected_objects(await affected_now(scope, name, heading, letter))
    except Retryable as error:
        click.echo(f"note: which bundles are wrong now is not known: {error}", err=True)
    if letter is None:
        return shown | {"row": json.loads(value).get("row", {})}
    return shown | {"headers": letter.headers, "key": letter.key, "value": letter.value}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
