"""OpenTelemetry's names for calls to models, in one place: they are still being worked on, and change.

As of semantic-conventions-genai, November 2026, status Development. Own names begin with `ctxpipe.`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.guard.config import Endpoint
from pipeline.guard.values import Attempt, ModelRequest

OPERATION_DURATION = "gen_ai.client.operation.duration"
TOKEN_USAGE = "gen_ai.client.token.usage"
OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
OUTPUT_TYPE = "gen_ai.output.type"
TOKEN_TYPE = "gen_ai.token.type"
ERROR_TYPE = "error.type"
RUNG, TASK, COST = "ctxpipe.guard.rung", "ctxpipe.guard.task", "ctxpipe.guard.cost"
CHAT = "chat"


def span_name(attempt: Attempt) -> str:
    return f"{CHAT} {attempt.model}"


def attributes(request: ModelRequest, endpoint: Endpoint, attempt: Attempt) -> Mapping[str, str | int | float]:
    """Of the span of one attempt; nothing of what was asked or answered. A cost that is unknown is left out."""
    found: dict[str, str | int | float] = {
        OPERATION_NAME: CHAT,
        PROVIDER_NAME: endpoint.provider,
        REQUEST_MODEL: endpoint.model,
        RESPONSE_MODEL: attempt.model,
        REQUEST_MAX_TOKENS: request.output_tokens_max,
        OUTPUT_TYPE: request.output.kind,
        RUNG: attempt.rung,
        TASK: request.task,
    }
    if attempt.tokens.input is not None:
        found[INPUT_TOKENS] = attempt.tokens.input
    if attempt.tokens.output is not None:
        found[OUTPUT_TOKENS] = attempt.tokens.output
    if attempt.cost is not None:
        found[COST] = float(attempt.cost)
    if attempt.reason:
        found[ERROR_TYPE] = attempt.reason
    return found
