"""What an answer was worth: a raw answer → why it does not count or what it holds, and what it says of its endpoint.
Pure.

| what came | breaker of the endpoint | of the output | tried again there |
| --- | --- | --- | --- |
| a whole answer whose output holds | success | success | |
| one whose output does not | success | failure, after the repair turn | |
| the model, or a filter, refuses | success | neutral | |
| no whole answer of HTTP, no chat completion, 5xx, 408, 409, 425 | failure | neutral | mostly |
| 429 | neutral, and a pause | neutral | |
| another 4xx, a request that can't be written | neutral: it is the request | neutral | |
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import msgspec

from pipeline.guard.breaker import Mark
from pipeline.guard.config import Endpoint
from pipeline.guard.output import Checked
from pipeline.guard.prices import Price
from pipeline.guard.strict_json import InvalidOutput
from pipeline.guard.values import NOT_COUNTED, ModelRequest, RawAnswer, Reason, Tokens, ToolCall
from pipeline.guard.wire import Envelope, checked, read_answer

RETRIED: frozenset[Reason] = frozenset(
    {
        "timeout",
        "unreachable",
        "unresolved",
        "reset",
        "cut",
        "content_type",
        "protocol",
        "not_an_answer",
        "server_error",
    }
)
"""What may have gone when it is tried again. A redirect, a certificate, a size stay as they are."""
_PASSING = frozenset({408, 409, 425})
_FREE: frozenset[str] = frozenset({"unreachable", "unresolved", "tls", "redirect", "content_type", "bad_request"})
"""Failures before a model can have worked."""
_SILENT = frozenset({401, 403})
"""Their messages repeat parts of keys."""
_DETAIL_CHARACTERS_MAX = 300
_NOTHING = Checked(None)


@dataclass(frozen=True, slots=True)
class Judgement:
    """`reason` "": `checked` and `tool_calls` are the answer. `text` is what the model wrote, for a repair turn."""

    reason: Reason
    detail: str = ""
    endpoint: Mark = "failure"
    invalid: str = ""
    text: str = ""
    model: str = ""
    tokens: Tokens = NOT_COUNTED
    checked: Checked = _NOTHING
    tool_calls: tuple[ToolCall, ...] = ()


def judge(raw: RawAnswer, request: ModelRequest, endpoint: Endpoint) -> Judgement:
    if raw.failure is not None:
        return Judgement(raw.failure, raw.detail, "neutral" if raw.failure == "bad_request" else "failure")
    if raw.status != 200:
        return _refused(raw, endpoint)
    envelope = read_answer(raw.body)
    if isinstance(envelope, str):
        return Judgement("not_an_answer", envelope[:_DETAIL_CHARACTERS_MAX])
    return _read(envelope, request)


def cost_of(raw: RawAnswer, tokens: Tokens, price: Price | None) -> Decimal | None:
    """None: unknown. Nobody charges for an error; what was broken off may have been worked on."""
    if raw.failure in _FREE or (raw.failure is None and raw.status != 200):
        return Decimal(0)
    return None if price is None else price.of(tokens, raw.took_s)


def _read(envelope: Envelope, request: ModelRequest) -> Judgement:
    text, model, tokens = envelope.text, envelope.model, envelope.tokens
    if envelope.refusal and not envelope.asked:
        told = f"the model would not answer: {envelope.refusal[:200]}"
        return Judgement("model_refused", told, "success", "refused", text, model, tokens)
    try:
        found, calls = checked(envelope, request)
    except InvalidOutput as error:
        return Judgement("invalid_output", error.detail, "success", error.kind, text, model, tokens)
    return Judgement("", "", "success", "", text, model, tokens, found, calls)


def _refused(raw: RawAnswer, endpoint: Endpoint) -> Judgement:
    told = f"it answered {raw.status}{_message(raw, endpoint)}"
    if raw.status == 429:
        return Judgement("rate_limited", told, "neutral")
    if 400 <= raw.status < 500 and raw.status not in _PASSING:
        return Judgement("refused", told, "neutral")
    return Judgement("server_error", told)


class _Error(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _Error


_ERRORS = msgspec.json.Decoder(_ErrorBody)


def _message(raw: RawAnswer, endpoint: Endpoint) -> str:
    """What the endpoint's own words are, as far as they can be shown."""
    if raw.status in _SILENT:
        return ""
    try:
        text = _ERRORS.decode(raw.body).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if endpoint.api_key is not None:
        text = text.replace(endpoint.api_key.get_secret_value(), "**********")
    return f": {' '.join(text.split())[:_DETAIL_CHARACTERS_MAX]}" if text else ""
