"""A stand-in for a language model that keeps to what the prompt says, behind the real protocol: what was recorded.

`large` and `other` speak chat completions over HTTP as two providers would: both decide by the rules in the prompt and
the context there, in other words and at other lengths. Their answers are recorded as they come over the wire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from tests.evals.decisions import CONTEXT_BEGINS, CONTEXT_ENDS, LATE_MINUTES, REBOOK_MINUTES

Json = dict[str, Any]
_PASSENGERS = re.compile(r"^(\d+) passengers wait", re.MULTILINE)
CREATED = 1_790_000_000
"""Not the time of day: recordings of one state are the same."""


def application() -> web.Application:
    made = web.Application()
    made.router.add_post("/{provider}/v1/chat/completions", _answer)
    return made


async def _answer(request: web.Request) -> web.Response:
    provider = request.match_info["provider"]
    body = await request.json()
    said = says(body["messages"], provider)
    return web.Response(body=completion(body, said), content_type="application/json")


def completion(body: Mapping[str, Any], said: str) -> bytes:
    """As endpoints write it; a token is four characters here."""
    asked = sum(len(str(message["content"])) for message in body["messages"])
    usage = {"prompt_tokens": asked // 4, "completion_tokens": len(said) // 4}
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    answer = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [choice],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
    return json.dumps(answer, ensure_ascii=False).encode()


def says(messages: list[Json], provider: str) -> str:
    """Its whole answer. The first message of a user holds the question, whatever was said about answers since."""
    rules, question = messages[0]["content"], next(one["content"] for one in messages if one["role"] == "user")
    inner = question.partition(CONTEXT_BEGINS)[2]
    context, _, asked = inner.partition(CONTEXT_ENDS)
    seen = json.loads(context)
    if rules.startswith("Decide"):
        said = _gate(seen, int(_PASSENGERS.findall(question)[0]), "do not rebook" in question)
    else:
        said = _film(seen, asked.strip().partition("\n")[0])
    if provider == "other":
        return json.dumps(said, ensure_ascii=False, indent=1)
    return json.dumps(said, ensure_ascii=False)


def _gate(seen: Json, passengers: int, stale: bool) -> Json:
    key, flight = next(iter(seen.items()))
    delay, name = flight.get("dep_delay"), f"Flight {flight.get('flight')} to {flight.get('dest')}"
    cited = [_cited(key, "/dep_delay", delay)]
    if delay is None or delay <= LATE_MINUTES:
        return _decision("wait", None, None, f"{name} leaves as planned.", cited)
    others = [(other, value) for other, value in seen.items() if other != key and value["status"] != "late"]
    if delay >= REBOOK_MINUTES and others and not stale:
        other, value = others[0]
        cited.append(_cited(other, "/status", value["status"]))
        told = f"{name} is {delay} minutes late; all {passengers} are moved to a later one."
        return _decision("rebook", None, value["flight_id"], told, cited)
    return _decision("announce", delay, None, f"{name} leaves about {delay} minutes late.", cited)


def _film(seen: Json, question: str) -> Json:
    key, film = next(iter(seen.items()))
    for words, answers in _QUESTIONS.items():
        if words in question:
            return answers(key, film)
    return _answered(None, None, [_cited(key, "/title", film["title"])])


def _one_field(pointer: str) -> Callable[[str, Json], Json]:
    def answers(key: str, film: Json) -> Json:
        value = film.get(pointer[1:])
        number = value if isinstance(value, int | float) else None
        return _answered(None if value is None else str(value), number, [_cited(key, pointer, value)])

    return answers


def _gap(key: str, film: Json) -> Json:
    critics, score = film["metacritic"], film["score"]["meter"]
    cited = [_cited(key, "/score/meter", score), _cited(key, "/metacritic", critics)]
    if critics is None:
        return _answered(None, None, cited)
    return _answered(f"{abs(score - critics)} points", abs(score - critics), cited)


def _per_review(key: str, film: Json) -> Json:
    meter, reviews = film["score"]["meter"], film["score"]["reviews"]
    good = round(meter / 100 * reviews, 1)
    cited = [_cited(key, "/score/meter", meter), _cited(key, "/score/reviews", reviews)]
    return _answered(f"about {good:g} of {reviews} reviews", good, cited)


def _newest(key: str, film: Json) -> Json:
    newest = film["same_director"][0]
    cited = [_cited(key, "/same_director/0/title", newest["title"]), _cited(key, "/director", film["director"])]
    return _answered(newest["title"], None, cited)


_QUESTIONS: dict[str, Callable[[str, Json], Json]] = {
    "Who directed": _one_field("/director"),
    "In which year": _one_field("/year"),
    "How long": _one_field("/runtime"),
    "points apart": _gap,
    "good reviews": _per_review,
    "newest film": _newest,
    "Metacritic": _one_field("/metacritic"),
}


def _decision(decision: str, minutes: int | None, flight_id: int | None, message: str, cited: list[Json]) -> Json:
    return {
        "decision": decision,
        "minutes": minutes,
        "flight_id": flight_id,
        "message": message,
        "citations": cited,
    }


def _answered(text: str | None, number: float | None, cited: list[Json]) -> Json:
    return {"known": text is not None, "answer": text or "", "number": number, "citations": cited}


def _cited(source: str, pointer: str, value: Any) -> Json:
    return {"source": source, "pointer": pointer, "value": value}
