"""The rungs without a model: what the application decides by itself when no model answered. Pure."""

from __future__ import annotations

from typing import Any

from pipeline.guard.values import ModelRequest
from tests.evals.decisions import LATE_MINUTES, REBOOK_MINUTES

_PLAIN_FIELDS = {"director": "/director", "year": "/year", "runtime": "/runtime", "metacritic": "/metacritic"}


def gate(request: ModelRequest) -> dict[str, Any] | None:
    """By the delay alone; rebooking is left to people, and so is a departure whose delay is not known."""
    return gate_rule(request.data)


def film(request: ModelRequest) -> dict[str, Any] | None:
    """Questions that one field answers; None for all others."""
    return film_rule(request.data)


def desk(request: ModelRequest) -> dict[str, Any]:
    """By a word; whoever is not sure sends people to the gate."""
    message = request.data["message"].lower()
    desks = {"bag": "baggage", "suitcase": "baggage", "missed": "rebooking", "cancelled": "rebooking"}
    found = next((name for word, name in desks.items() if word in message), "gate")
    return {"desk": found, "urgent": "now" in message.split()}


def gate_rule(data: Any) -> dict[str, Any] | None:
    key, delay = data["key"], data["seen"][data["key"]].get("dep_delay")
    if not isinstance(delay, int) or delay >= REBOOK_MINUTES:
        return None
    cited = [{"source": key, "pointer": "/dep_delay", "value": delay}]
    if delay <= LATE_MINUTES:
        return _gate("wait", None, "Boarding as planned.", cited)
    return _gate("announce", delay, f"Departure is expected {delay} minutes late.", cited)


def film_rule(data: Any) -> dict[str, Any] | None:
    key, pointer = data["key"], _PLAIN_FIELDS.get(data["about"])
    if pointer is None:
        return None
    value = data["seen"][key].get(pointer[1:])
    cited = [{"source": key, "pointer": pointer, "value": value}]
    number = value if isinstance(value, int | float) else None
    return {
        "known": value is not None,
        "answer": "" if value is None else str(value),
        "number": number,
        "citations": cited,
    }


def _gate(decision: str, minutes: int | None, message: str, cited: list[dict[str, Any]]) -> dict[str, Any]:
    return {"decision": decision, "minutes": minutes, "flight_id": None, "message": message, "citations": cited}
