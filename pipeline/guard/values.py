"""What goes into a guarded call and comes out of it: frozen values that the ladder, clients and recordings share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from pipeline.guard.output import TEXT, Output, Tool

Rung = Literal["primary", "retry", "other", "local", "deterministic", "escalated"]
RUNGS: tuple[Rung, ...] = ("primary", "retry", "other", "local", "deterministic", "escalated")

Failure = Literal[
    "timeout", "unreachable", "unresolved", "tls", "reset", "cut", "too_large", "content_type", "redirect", "protocol",
    "bad_request",
]  # fmt: skip
"""Why there is no whole answer of HTTP. bad_request: it can't be written, and was not sent."""

Reason = Literal[
    "",
    "timeout", "unreachable", "unresolved", "tls", "reset", "cut", "too_large", "content_type", "redirect", "protocol",
    "bad_request", "not_an_answer", "server_error", "refused", "rate_limited", "invalid_output", "model_refused",
    "breaker_open", "output_breaker_open", "too_many", "tenant_too_many",
    "cost_limit", "tenant_budget", "cost_unknown", "no_time", "no_route", "cancelled", "slow", "function_failed",
]  # fmt: skip
"""What kept a rung from answering; "" for one that did. The first eleven are those of Failure, then what an endpoint
said, then why it was not asked. slow: another endpoint was asked too and was first; cancelled: of the one that lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One question to a model, whichever answers it.

    `task` chooses the route and is a label of metrics: few values. `messages` and `tools` are those of OpenAI's chat
    completions. `deadline_s` counts from the call. `cost_max`, in the currency of the price table, holds for all
    attempts together; None: no limit. `tenant` is whose budget it is. `parameters` (temperature, seed, …) go to the
    endpoint as they are. `data` is for the application's function and for the person who answers an escalation; no
    endpoint gets it.
    """

    task: str
    messages: Sequence[Mapping[str, Any]]
    output: Output = TEXT
    tools: Sequence[Tool] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    output_tokens_max: int = 1024
    deadline_s: float = 30.0
    cost_max: Decimal | None = None
    tenant: str | None = None
    request_id: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for what can only be a slip; a deadline that has passed already is none."""
        if math.isnan(self.deadline_s):
            raise ValueError("deadline_s is not a number")
        if self.output_tokens_max < 1:
            raise ValueError(f"output_tokens_max is {self.output_tokens_max}; a model has to say something")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    """What came over the wire, before anybody reads anything into it.

    Either `failure` (with `detail`, one sentence without secrets) or a `status`. `headers` has lower-case names, only
    those of http_client.HEADERS_KEPT. Of an answer that was given up, `body` holds nothing. Times in seconds since it
    was sent.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: Failure | None = None
    detail: str = ""
    first_byte_s: float = 0.0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """As the endpoint counted them; None where it did not say."""

    input: int | None = None
    output: int | None = None


NOT_COUNTED = Tokens()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One that the model asks for; `arguments` fit the tool's parameters."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One question to one endpoint, or one that was not asked (`asked` False). `reason` "": it answered.

    `cost` None: unknown. `invalid`: what of the output was wrong, see output.InvalidOutput. `repair_turn`: the question
    was to mend the output before.
    """

    rung: Rung
    endpoint: str
    model: str
    reason: Reason
    detail: str = ""
    asked: bool = True
    status: int = 0
    took_s: float = 0.0
    tokens: Tokens = NOT_COUNTED
    cost: Decimal | None = Decimal(0)
    invalid: str = ""
    repair_turn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Always one, whatever the models did.

    `output`: checked against the request's `output` (the pydantic model, the JSON value, or the text); None where
    `tool_calls` has what the model asks for, and where `rung` is "escalated". `reason`: what kept the primary endpoint
    from answering at first, "" where it did; `attempts` has all of it. `raw`: the body of the answer that counts, as it
    came. `repaired`: "" (nothing to mend), "mechanical" (a fence or words around the one JSON value were dropped) or
    "turn" (the model was asked to mend it once). `cost` None: of some attempt it is unknown; `cost_known` is the rest.
    """

    output: Any
    rung: Rung
    reason: Reason
    attempts: tuple[Attempt, ...]
    endpoint: str = ""
    model: str = ""
    raw: bytes = b""
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: Tokens = NOT_COUNTED
    cost: Decimal | None = Decimal(0)
    cost_known: Decimal = Decimal(0)
    repaired: Literal["", "mechanical", "turn"] = ""
    escalation: Literal["", "recorded", "pending", "failed"] = ""
    escalation_id: str = ""
    took_s: float = 0.0

    @property
    def answered(self) -> bool:
        """False: a person has to answer."""
        return self.rung != "escalated"


def costs_of(attempts: Iterable[Attempt]) -> tuple[Decimal | None, Decimal]:
    """Of those that were asked: (all of it, None where a part is unknown; the part that is known)."""
    costs = [one.cost for one in attempts if one.asked]
    known = sum((cost for cost in costs if cost is not None), Decimal(0))
    return (None if None in costs else known), known
