"""The flow under test: context inside a budget → prompt → guarded model → checked answer → action, or a person.

`handle` takes {"ask": "gate", "flight_id", "passengers", "others"}, {"ask": "film", "film_id", "about", "question"} (or
"find", words to find the film by, in place of its id) or {"ask": "desk", "message"}, each with `deadline_ms`, and gives
a decision that says who made it and what it rests on. It raises nothing that contexts, models or tools could cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from pipeline.client import Bundle, ClientError
from pipeline.evaluation.values import Given
from pipeline.guard.output import Output, of_model
from pipeline.guard.values import ModelRequest
from tests.evals import decisions, rules
from tests.evals.actions import tools
from tests.evals.decisions import DeskChoice, FilmAnswer, GateDecision

__all__ = ["handle", "tools"]

DEADLINE_MS = 3_000.0
CONTEXT_BUDGET_MS = 100.0
ACTION_MS = 100.0
"""What of the deadline is kept for what follows the model's answer."""
TOO_OLD_MS = 600_000.0
"""Beyond it nobody decides on a context but people."""
ASKED_MAX = 2
"""How often a model is asked whose answers are whole, but do not hold."""
FLIGHT_FIELDS = (
    "flight_id",
    "carrier",
    "flight",
    "dest",
    "dep_delay",
    "status",
    "weather.visib",
    "airline.name",
    "punctuality.average_delay",
)
OTHERS_FIELDS = ("flight_id", "dest", "status")
_OUTPUTS: Mapping[str, Output] = {
    "gate": of_model(GateDecision),
    "film": of_model(FilmAnswer),
    "desk": of_model(DeskChoice),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What was looked up, by context/key. `stale`: some of it may be out of date. `problem`: nobody may decide on it.
    `candidates`: flights that passengers may be given."""

    data: Mapping[str, Any]
    stale: bool = False
    left_out: tuple[str, ...] = ()
    status: str = ""
    problem: str = ""
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One question to a model: `messages` by what was wrong with the answer before ("": nothing yet), `mistakes` of an
    output whose form holds, `by_rules` what the application would say itself."""

    name: str
    case: Mapping[str, Any]
    data: Mapping[str, Any]
    messages: Callable[[str], list[dict[str, Any]]]
    mistakes: Callable[[Any], list[str]]
    by_rules: Callable[[Any], dict[str, Any] | None]
    ends_s: float


@dataclass(frozen=True, slots=True)
class Answered:
    """`output` None: nobody had one, `why` says so. `by`: the guard's rung, or "rules" where models' answers did not
    hold. `refused`: what was wrong with those."""

    output: Any
    by: str
    reason: str
    refused: tuple[str, ...]
    why: str = ""


async def handle(case: Mapping[str, Any], given: Given) -> dict[str, Any]:
    ends_s = given.clock.monotonic_s() + case.get("deadline_ms", DEADLINE_MS) / 1000
    return await {"gate": _gate, "film": _film, "desk": _desk}[case["ask"]](case, given, ends_s)


async def _gate(case: Mapping[str, Any], given: Given, ends_s: float) -> dict[str, Any]:
    key = f"flight/{case['flight_id']}"
    seen = await look_up(given, "flight", str(case["flight_id"]), FLIGHT_FIELDS)
    if seen.problem:
        return await _ask_staff(case, given, seen, seen.problem)
    delay = seen.data[key].get("dep_delay")
    if isinstance(delay, int) and delay >= decisions.REBOOK_MINUTES:
        seen = await with_others(case, given, seen)
    task = Task(
        "gate",
        case,
        {"key": key, "seen": dict(seen.data)},
        lambda mistake: decisions.gate_messages(seen.data, case["passengers"], seen.stale, seen.left_out, mistake),
        lambda output: decisions.mistakes_of_gate(output, seen.data, seen.candidates, seen.stale),
        rules.gate_rule,
        ends_s,
    )
    answered = await answer(given, task)
    if answered.output is None:
        return await _ask_staff(case, given, seen, answered.why, answered)
    return await _act(case, given, seen, answered)


async def _act(case: Mapping[str, Any], given: Given, seen: Seen, answered: Answered) -> dict[str, Any]:
    decided: GateDecision = answered.output
    told = _told(seen, answered, decided.model_dump(mode="json"))
    if decided.decision == "wait":
        return told
    if decided.decision == "ask_staff":
        return await _ask_staff(case, given, seen, decided.message, answered)
    if decided.decision == "announce":
        arguments = {"flight_id": case["flight_id"], "minutes": decided.minutes}
    else:
        arguments = {"flight_id": decided.flight_id, "passengers": case["passengers"]}
    try:
        done = (await given.tools.call(decided.decision, arguments))["done"]
    except (RuntimeError, LookupError) as error:
        return await _ask_staff(case, given, seen, f"{decided.decision} failed: {error}", answered)
    return told if done else await _ask_staff(case, given, seen, f"{decided.decision} was not done", answered)


async def _ask_staff(
    case: Mapping[str, Any], given: Given, seen: Seen, why: str, answered: Answered | None = None
) -> dict[str, Any]:
    """The end of every way that has no answer: a person is told, once."""
    if answered is None or answered.by != "escalated":
        await given.tools.call("ask_staff", {"flight_id": case["flight_id"], "why": why})
    output: dict[str, Any] = {
        "decision": "ask_staff",
        "minutes": None,
        "flight_id": None,
        "message": why,
        "citations": [],
    }
    return _told(seen, answered, output)


async def with_others(case: Mapping[str, Any], given: Given, seen: Seen) -> Seen:
    """Later departures join what was seen; candidates are those that have seats and are not late themselves."""
    try:
        listed = await given.tools.call("later_departures", {"flight_id": case["flight_id"]})
        ids = [one["flight_id"] for one in listed if one["seats"] >= case["passengers"]]
        keys = [str(one) for one in ids]
        if not keys:
            return seen
        bundles = await given.context.get_many("flight", keys, budget_ms=CONTEXT_BUDGET_MS, fields=OTHERS_FIELDS)
    except (ClientError, RuntimeError):
        return seen
    data, stale, candidates = dict(seen.data), seen.stale, []
    for number, bundle in zip(ids, bundles, strict=True):
        if bundle.status in ("missing", "fallback") or bundle.data["status"] == "late":
            continue
        stale = stale or bundle.status == "stale"
        data[f"flight/{number}"] = bundle.data
        candidates.append(number)
    return replace(seen, data=data, stale=stale, candidates=tuple(candidates))


async def _film(case: Mapping[str, Any], given: Given, ends_s: float) -> dict[str, Any]:
    nothing = {"known": False, "answer": "", "number": None, "citations": []}
    film_id = await find_film(case, given)
    key = f"film/{film_id}"
    seen = await look_up(given, "film", film_id, None) if film_id else Seen({}, problem="no film like that was found")
    if seen.problem:
        return _told(seen, None, {**nothing, "why": seen.problem})
    task = Task(
        "film",
        case,
        {"key": key, "about": case["about"], "seen": dict(seen.data)},
        lambda mistake: decisions.film_messages(seen.data, case["question"], seen.left_out, mistake),
        lambda output: decisions.mistakes_of_film(output, seen.data),
        rules.film_rule,
        ends_s,
    )
    answered = await answer(given, task)
    if answered.output is None:
        return _told(seen, answered, {**nothing, "why": answered.why})
    return _told(seen, answered, {**answered.output.model_dump(mode="json"), "why": ""})


async def find_film(case: Mapping[str, Any], given: Given) -> str:
    """Its key; "" where nothing was found."""
    if "film_id" in case:
        return str(case["film_id"])
    try:
        found = await given.context.search("film", case["find"], k=3, bundles=False, budget_ms=CONTEXT_BUDGET_MS)
    except ClientError:
        return ""
    return found.hits[0].key if found.hits else ""


async def _desk(case: Mapping[str, Any], given: Given, ends_s: float) -> dict[str, Any]:
    """No context, and a model that is small enough to stand in every terminal."""
    message = case["message"]
    task = Task(
        "desk",
        case,
        {"message": message},
        lambda mistake: decisions.desk_messages(message),
        lambda output: [],
        lambda data: None,
        ends_s,
    )
    answered = await answer(given, task)
    chosen = {"desk": "gate", "urgent": True} if answered.output is None else answered.output.model_dump(mode="json")
    return _told(Seen({}), answered, chosen)


async def look_up(given: Given, context: str, key: str, fields: Sequence[str] | None) -> Seen:
    """What each status means to this orchestrator: fresh, stale and partial go on, with notes; the rest is for
    people."""
    try:
        bundle = await given.context.get(context, key, budget_ms=CONTEXT_BUDGET_MS, fields=fields)
    except ClientError as error:
        return Seen({}, status="unavailable", problem=f"no context: {error}")
    problem = undecidable(bundle)
    if problem:
        return Seen({}, status=bundle.status, problem=problem)
    left_out = tuple(sorted(path for path, reason in bundle.left_out.items() if reason != "not asked for"))
    return Seen({f"{context}/{key}": bundle.data}, bundle.status == "stale", left_out, bundle.status)


def undecidable(bundle: Bundle) -> str:
    """Why nobody but a person may decide on it; "": it will do."""
    if bundle.status == "missing":
        return "there is no such thing"
    if bundle.status == "fallback":
        return "there is no context now, only the default"
    if bundle.status == "stale" and (bundle.oldest_ms is None or bundle.oldest_ms > TOO_OLD_MS):
        return "the context is too old to decide on"
    return ""


async def answer(given: Given, task: Task) -> Answered:
    """From a model; from the rules, where its answers do not hold. It is told once what was wrong."""
    refused: list[str] = []
    while len(refused) < ASKED_MAX:
        result = await given.guard.call(request_of(given, task, refused[-1] if refused else ""))
        if not result.answered:
            return Answered(None, "escalated", result.reason, tuple(refused), "no model and no rule had an answer")
        wrong = task.mistakes(result.output)
        if not wrong:
            return Answered(result.output, result.rung, result.reason, tuple(refused))
        refused.append("; ".join(wrong))
    said = task.by_rules(task.data)
    if said is None:
        return Answered(None, "rules", "does_not_hold", tuple(refused), "the model's answers do not hold")
    output: BaseModel = (FilmAnswer if task.name == "film" else GateDecision).model_validate(said)
    return Answered(output, "rules", "does_not_hold", tuple(refused))


def request_of(given: Given, task: Task, mistake: str) -> ModelRequest:
    return ModelRequest(
        task=task.name,
        messages=task.messages(mistake),
        output=_OUTPUTS[task.name],
        parameters={"temperature": 0, "seed": 1},
        output_tokens_max=400,
        deadline_s=task.ends_s - given.clock.monotonic_s() - ACTION_MS / 1000,
        tenant=task.case.get("carrier"),
        data=task.data,
    )


def _told(seen: Seen, answered: Answered | None, output: dict[str, Any]) -> dict[str, Any]:
    """The output with who made it and what it rests on."""
    output["answered_by"] = "nobody" if answered is None else answered.by
    output["reason"] = "" if answered is None else answered.reason
    output["refused"] = [] if answered is None else list(answered.refused)
    output["context"] = seen.status
    return output
