"""What `ctxpipe escalations` prints. Texts of models and users move no cursor and colour nothing."""

from __future__ import annotations

import json
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._dlq_show import duration, show_table, when

if TYPE_CHECKING:
    from pipeline.commands._escalations import Answered
    from pipeline.guard.escalation_records import Heading, PersonsAnswer, Question, Standing, Tried
    from pipeline.streams.escalation_desk import Whole

ID_CHARACTERS = 13
"""Of an id in the table; enough to name it by."""
CELL_CHARACTERS_MAX = 60
BLOCK_CHARACTERS_MAX = 20_000
_KEPT = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs"})


def printable(text: str) -> str:
    """Without what a terminal would obey or would hide: control characters, and marks that turn directions."""
    return "".join(
        one if one in _KEPT or unicodedata.category(one) not in _HIDDEN else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def show_list(standings: Sequence[Standing], more: int, *, as_json: bool) -> None:
    if as_json:
        for one in standings:
            click.echo(json.dumps(listed_object(one)))
        return
    if not standings:
        click.echo("No questions.")
        return
    head = ("ID", "ASKED", "STATE", "TASK", "TENANT", "WHY", "ANSWERED BY")
    show_table(head, [_row(one) for one in standings if one.heading is not None], state_column=2)
    if more:
        click.echo(f"… and {more:,} older; --limit shows more", err=True)


def listed_object(standing: Standing) -> dict[str, Any]:
    heading, first = standing.heading, standing.answered
    assert heading is not None
    return {
        "id": heading.id,
        "state": "open" if first is None else "answered",
        "at_us": heading.at_us,
        "task": heading.task,
        "tenant": heading.tenant,
        "request_id": heading.request_id,
        "output": heading.output_name,
        "why": why(heading.attempts),
        "answered_by": None if first is None else first[1].by,
        "answered_at_us": None if first is None else first[1].at_us,
    }


def why(attempts: Sequence[Tried]) -> str:
    """What kept each endpoint from answering, the last reason of each."""
    reasons = {one.endpoint: one.reason for one in attempts if one.reason}
    return ", ".join(f"{endpoint}: {reason}" for endpoint, reason in reasons.items()) or "no route"


def show_whole(whole: Whole, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(whole_object(whole)))
        return
    question = whole.question
    _head(question)
    _section("What was tried")
    show_table(("RUNG", "ENDPOINT", "MODEL", "RESULT", "TOOK", "DETAIL"), [_tried(one) for one in question.attempts])
    if question.last_output:
        _section("What the last model wrote, which was refused")
        _block(question.last_output)
    _section("Conversation" + (", the end of it" if question.cut else ""))
    for message in question.messages:
        _message(message)
    if question.data:
        _section("Data of the application")
        _block(_pretty(question.data))
    _section("Answer wanted")
    _block("a text" if question.json_schema is None else _pretty(question.json_schema))
    _answers(whole)


def whole_object(whole: Whole) -> dict[str, Any]:
    import msgspec

    shown: dict[str, Any] = msgspec.to_builtins(whole.question)
    shown.pop("kind")
    answers = [{**_answer_object(one), "counts": number == 0} for number, one in enumerate(whole.answers)]
    return shown | {"state": "answered" if whole.answers else "open", "answers": answers}


def show_answered(done: Answered, *, as_json: bool) -> None:
    first = done.first
    if as_json:
        click.echo(json.dumps({"id": done.question.id, "counts": done.counts, "answer": _answer_object(first)}))
    elif done.counts:
        click.echo(
            f"Answered. The application of {printable(done.question.task)} gets {_short(json.dumps(first.value))}"
        )
    else:
        click.echo(
            f"{printable(first.by)} was first, {when(first.at_us // 1000)}: {_short(json.dumps(first.value))}. That "
            "answer counts, yours does not",
            err=True,
        )


def _row(standing: Standing) -> tuple[str, ...]:
    heading, first = standing.heading, standing.answered
    assert heading is not None
    state = "answered" if first is not None else f"open {duration(_age_s(heading))}"
    cells = (
        heading.id[:ID_CHARACTERS],
        when(heading.at_us // 1000),
        state,
        heading.task,
        heading.tenant or "-",
        why(heading.attempts),
        "-" if first is None else first[1].by,
    )
    return tuple(_short(cell) for cell in cells)


def _age_s(heading: Heading) -> float:
    import time

    return time.time() - heading.at_us / 1_000_000


def _head(question: Question) -> None:
    lines = {
        "question": question.id,
        "asked": when(question.at_us // 1000),
        "task": question.task,
        "tenant": question.tenant or "-",
        "request": question.request_id or "-",
        "answer": question.output_name,
    }
    for name, value in lines.items():
        click.echo(f"{name:>9}: {printable(value)}")
    if question.cut:
        click.echo(f"{'note':>9}: it was too long to be kept whole; look into the application for the rest")


def _tried(one: Tried) -> tuple[str, ...]:
    result = one.reason or "answered"
    if one.status and one.status != 200:
        result += f" ({one.status})"
    if one.repair_turn:
        result += ", repair turn"
    cells = (one.rung, one.endpoint, one.model or "-", result, f"{one.took_s:.2f} s" if one.asked else "not asked")
    return tuple(_short(cell) for cell in (*cells, one.detail or "-"))


def _message(message: Any) -> None:
    if not isinstance(message, Mapping):
        _block(_pretty(message))
        return
    content = message.get("content")
    click.secho(f"{printable(str(message.get('role', '?')))}:", bold=sys.stdout.isatty())
    _block(content if isinstance(content, str) else _pretty(content))
    for name, value in message.items():
        if name not in ("role", "content") and value:
            _block(f"{name}: {_pretty(value)}")


def _answers(whole: Whole) -> None:
    from pipeline.guard.escalation_records import skeleton

    question = whole.question
    if not whole.answers:
        example = "--text '…'"
        if question.json_schema is not None:
            example = f"--value {shlex.quote(printable(json.dumps(skeleton(question.json_schema))))}"
        _section("To answer")
        click.echo(f"  ctxpipe escalations answer {question.id[:ID_CHARACTERS]} {example} --note 'why'")
        return
    _section("Answered")
    for number, one in enumerate(whole.answers):
        counts = "" if number == 0 else " (too late, does not count)"
        click.echo(f"  {when(one.at_us // 1000)} by {printable(one.by)}{counts}: {printable(json.dumps(one.value))}")
        if one.note:
            _block(one.note)


def _answer_object(answer: PersonsAnswer) -> dict[str, Any]:
    return {"value": answer.value, "by": answer.by, "at_us": answer.at_us, "note": answer.note}


def _section(title: str) -> None:
    click.secho(f"\n{title}", bold=sys.stdout.isatty())


def _block(text: str) -> None:
    for line in _lines(text):
        click.echo(f"  {line}")


def _lines(text: str) -> Iterable[str]:
    shown = printable(text.replace("\r\n", "\n"))
    if len(shown) > BLOCK_CHARACTERS_MAX:
        left = len(shown) - BLOCK_CHARACTERS_MAX
        return [*shown[:BLOCK_CHARACTERS_MAX].split("\n"), f"… {left:,} characters more; --json shows all"]
    return shown.split("\n")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _short(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= CELL_CHARACTERS_MAX else line[: CELL_CHARACTERS_MAX - 1] + "…"
