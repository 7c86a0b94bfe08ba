"""What spans and metrics say of a call and its attempts, by the names of pipeline.core.genai_names."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.core import genai_names as names
from pipeline.guard.config import Endpoint
from pipeline.guard.values import Attempt, ModelRequest, Result

Values = Mapping[str, str | int | float]


def span_name(attempt: Attempt) -> str:
    return f"{names.CHAT} {attempt.model}"


def call_name(request: ModelRequest) -> str:
    """Of the span around all attempts, for which the conventions have no name."""
    return f"guard {request.task}"


def call_attributes(request: ModelRequest) -> Values:
    return {names.TASK: request.task, names.OUTPUT_TYPE: request.output.kind}


def result_attributes(result: Result) -> Values:
    """Who answered and why, and how many endpoints were asked and passed over."""
    found: dict[str, str | int | float] = {
        names.RUNG: result.rung,
        names.ASKED: sum(attempt.asked for attempt in result.attempts),
        names.PASSED_OVER: sum(not attempt.asked for attempt in result.attempts),
    }
    if result.reason:
        found[names.REASON] = result.reason
    if result.cost is not None:
        found[names.COST] = float(result.cost)
    return found


def metric_attributes(endpoint: Endpoint, attempt: Attempt) -> Values:
    """Of both histograms."""
    found: dict[str, str | int | float] = {
        names.OPERATION_NAME: names.CHAT,
        names.PROVIDER_NAME: endpoint.provider,
        names.REQUEST_MODEL: endpoint.model,
        names.RESPONSE_MODEL: attempt.model,
    }
    return found | {names.ERROR_TYPE: attempt.reason} if attempt.reason else found


def attributes(request: ModelRequest, endpoint: Endpoint, attempt: Attempt) -> Values:
    """Of the span of one attempt; nothing of what was asked or answered. A cost that is unknown is left out."""
    found: dict[str, str | int | float] = {
        names.OPERATION_NAME: names.CHAT,
        names.PROVIDER_NAME: endpoint.provider,
        names.REQUEST_MODEL: endpoint.model,
        names.RESPONSE_MODEL: attempt.model,
        names.REQUEST_MAX_TOKENS: request.output_tokens_max,
        names.OUTPUT_TYPE: request.output.kind,
        names.RUNG: attempt.rung,
        names.TASK: request.task,
    }
    if attempt.tokens.input is not None:
        found[names.INPUT_TOKENS] = attempt.tokens.input
    if attempt.tokens.output is not None:
        found[names.OUTPUT_TOKENS] = attempt.tokens.output
    if attempt.cost is not None:
        found[names.COST] = float(attempt.cost)
    if attempt.reason:
        found[names.ERROR_TYPE] = attempt.reason
    return found
