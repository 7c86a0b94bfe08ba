"""The flow under test; put your own in its place. It answers a question about an order, or asks a person.

question → context → model → checked answer → action
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.client import ClientError
from pipeline.evaluation.values import Given
from pipeline.guard.output import of_model
from pipeline.guard.values import ModelRequest

REFUNDS_UP_TO = 100


class Reply(BaseModel):
    """What the model has to say; `quote` is what it rests on, word for word."""

    answer: str
    quote: str
    refund: bool


async def handle(asked: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """{"order", "question"} → {"answer", "by", "citations"}."""
    try:
        bundle = await given.context.get("order", asked["order"], budget_ms=50)
    except ClientError as error:
        return await _ask_a_person(asked, given, f"no context: {type(error).__name__}")
    if bundle.raw is None:
        return await _ask_a_person(asked, given, "no such order")
    messages = [
        {"role": "system", "content": f"Answer from this order alone, as JSON: {bundle.raw.decode()}"},
        {"role": "user", "content": asked["question"]},
    ]
    request = ModelRequest(task="answer", messages=messages, output=of_model(Reply), deadline_s=3, data=dict(asked))
    result = await given.guard.call(request)
    reply = result.output
    if not isinstance(reply, Reply):
        return await _ask_a_person(asked, given, result.reason)
    if reply.refund:
        if bundle.status != "fresh" or bundle.data["total"] > REFUNDS_UP_TO:
            return await _ask_a_person(asked, given, "a refund that a person has to decide")
        await given.tools.call("refund", {"order": asked["order"], "amount": bundle.data["total"]})
    citation = {"source": f"order/{bundle.key}", "quote": reply.quote}
    return {"answer": reply.answer, "by": result.rung, "citations": [citation]}


async def _ask_a_person(asked: Mapping[str, Any], given: Given, why: str) -> dict[str, Any]:
    await given.tools.call("ask_a_person", {"order": asked["order"], "why": why})
    return {"answer": "A colleague will write to you.", "by": "person", "citations": []}


class Shop:
    """What the flow may do. Its calls are part of each case's trace."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return {"done": name in ("refund", "ask_a_person")}


def tools(asked: Mapping[str, Any]) -> Shop:
    return Shop()
