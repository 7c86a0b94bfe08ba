"""What the reference orchestrator may decide, how a model is asked for it, what is wrong with what it says. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

CONTEXT_BEGINS, CONTEXT_ENDS = "<context>\n", "\n</context>"
LATE_MINUTES = 15
"""Up to here a departure is on time."""
REBOOK_MINUTES = 120
"""From here on passengers get another flight, if there is one."""
MINUTES_MAX = 1_440
Scalar = str | int | float | bool | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Citation(_Strict):
    """Where in the context a statement comes from: `source` is context/key, `pointer` a JSON Pointer into it."""

    source: Annotated[str, Field(max_length=60)]
    pointer: Annotated[str, Field(max_length=60)]
    value: Scalar


class GateDecision(_Strict):
    """What is to be done about a departure. `minutes` of announce, `flight_id` of rebook; else null."""

    decision: Literal["wait", "announce", "rebook", "ask_staff"]
    minutes: Annotated[int, Field(ge=0, le=MINUTES_MAX)] | None
    flight_id: int | None
    message: Annotated[str, Field(min_length=1, max_length=200)]
    citations: Annotated[list[Citation], Field(min_length=1, max_length=6)]


class FilmAnswer(_Strict):
    """An answer about a film. `number` where the question asks for one; `known` False: the context does not say."""

    known: bool
    answer: Annotated[str, Field(max_length=200)]
    number: float | None
    citations: Annotated[list[Citation], Field(min_length=1, max_length=6)]


class DeskChoice(_Strict):
    """Who a passenger should turn to."""

    desk: Literal["gate", "rebooking", "baggage"]
    urgent: bool


_GATE = f"""Decide about a departure, by the context alone. dep_delay is in minutes, null before it has left.
dep_delay up to {LATE_MINUTES} or null: wait. Up to {REBOOK_MINUTES - 1}: announce it. More: rebook to the first of
"others" that is not late and has seats, else announce. Cite what you used. Answer with JSON only."""
_FILM = """Answer the question by the context alone; where it does not say, known is false and answer empty.
Cite what you used. Answer with JSON only."""
_DESK = "Which desk is this for: gate, rebooking or baggage? Is it urgent? JSON only."
_STALE = "The context may be out of date: do not rebook."


def gate_messages(
    seen: Mapping[str, Any], passengers: int, stale: bool, left_out: Sequence[str], mistake: str = ""
) -> list[dict[str, Any]]:
    """`seen`: context/key → what was looked up, the departure first."""
    notes = [_STALE] if stale else []
    return _messages(_GATE, seen, f"{passengers} passengers wait. What is to be done?", notes, left_out, mistake)


def film_messages(
    seen: Mapping[str, Any], question: str, left_out: Sequence[str], mistake: str = ""
) -> list[dict[str, Any]]:
    return _messages(_FILM, seen, question, [], left_out, mistake)


def desk_messages(message: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": _DESK}, {"role": "user", "content": message}]


def mistakes_of_citations(citations: Sequence[Citation], seen: Mapping[str, Any]) -> list[str]:
    """A sentence for each one that does not stand in what was looked up."""
    found = []
    for citation in citations:
        if citation.source not in seen:
            found.append(f"{citation.source} was not looked up")
            continue
        there, value = pointed(seen[citation.source], citation.pointer)
        if not there:
            found.append(f"{citation.source} has no {citation.pointer}")
        elif isinstance(value, dict | list) or not _same(value, citation.value):
            found.append(f"{citation.source}{citation.pointer} is not {json.dumps(citation.value)}")
    return found


def mistakes_of_gate(
    decision: GateDecision, seen: Mapping[str, Any], candidates: Sequence[int], stale: bool
) -> list[str]:
    """What forbids acting on it; empty: nothing does."""
    found = mistakes_of_citations(decision.citations, seen)
    if decision.decision == "rebook":
        if stale:
            found.append("nobody is rebooked on a context that may be out of date")
        elif decision.flight_id not in candidates:
            found.append(f"flight {decision.flight_id} is none of those with seats: {list(candidates)}")
    if decision.decision == "announce" and decision.minutes is None:
        found.append("announce needs minutes")
    if decision.decision != "rebook" and decision.flight_id is not None:
        found.append("flight_id is for rebook alone")
    return found


def mistakes_of_film(answer: FilmAnswer, seen: Mapping[str, Any]) -> list[str]:
    found = mistakes_of_citations(answer.citations, seen)
    if answer.known and not answer.answer:
        found.append("known answers are not empty")
    if not answer.known and (answer.answer or answer.number is not None):
        found.append("what is not known has no answer")
    if answer.known and all(citation.value is None for citation in answer.citations):
        found.append("nothing that is cited holds the answer")
    return found


def pointed(value: Any, pointer: str) -> tuple[bool, Any]:
    """Whether a JSON Pointer (RFC 6901) leads somewhere in the value, and to what."""
    if pointer == "":
        return True, value
    if not pointer.startswith("/"):
        return False, None
    for part in pointer[1:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return False, None
    return True, value


def _same(value: Any, cited: Scalar) -> bool:
    """True is not 1."""
    return isinstance(value, bool) == isinstance(cited, bool) and value == cited


def _messages(
    rules: str, seen: Mapping[str, Any], question: str, notes: Sequence[str], left_out: Sequence[str], mistake: str
) -> list[dict[str, Any]]:
    lines = [*notes]
    if left_out:
        lines.append(f"Not shown: {', '.join(left_out)}. Do not guess it.")
    lines.append(CONTEXT_BEGINS + json.dumps(seen, ensure_ascii=False, separators=(",", ":")) + CONTEXT_ENDS)
    lines.append(question)
    if mistake:
        lines.append(f"Your last answer was not taken: {mistake}.")
    return [{"role": "system", "content": rules}, {"role": "user", "content": "\n".join(lines)}]
