"""OpenTelemetry's names for calls to models, in one place: they are still being worked on, and change.

As of semantic-conventions-genai, November 2026, status Development. Own names begin with `ctxpipe.`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.guard.config import Endpoint
from pipeline.guard.values import Attempt, ModelRequest, Result

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
REASON, PASSED_OVER, ASKED = "ctxpipe.guard.reason", "ctxpipe.guard.passed_over", "ctxpipe.guard.asked"
CHAT = "chat"
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Bounds of the two histograms, as the conventions ask for them."""

Values = Mapping[str, str | int | float]


def span_name(attempt: Attempt) -> str:
    return f"{CHAT} {attempt.model}"


def call_name(request: ModelRequest) -> str:
    """Of the span around all attempts, for which the conventions have no name."""
    return f"guard {request.task}"


def call_attributes(request: ModelRequest) -> Values:
    return {TASK: request.task, OUTPUT_TYPE: request.output.kind}


def result_attributes(result: Result) -> Values:
    """Who answered and why, and how many endpoints were asked and passed over."""
    found: dict[str, str | int | float] = {
        RUNG: result.rung,
        ASKED: sum(attempt.asked for attempt in result.attempts),
        PASSED_OVER: sum(not attempt.asked for attempt in result.attempts),
    }
    if result.reason:
        found[REASON] = result.reason
    if result.cost is not None:
        found[COST] = float(result.cost)
    return found


def metric_attributes(endpoint: Endpoint, attempt: Attempt) -> Values:
    """Of both histograms."""
    found: dict[str, str | int | float] = {
        OPERATION_NAME: CHAT,
        PROVIDER_NAME: endpoint.provider,
        REQUEST_MODEL: endpoint.model,
        RESPONSE_MODEL: attempt.model,
    }
    return found | {ERROR_TYPE: attempt.reason} if attempt.reason else found


def attributes(request: ModelRequest, endpoint: Endpoint, attempt: Attempt) -> Values:
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
