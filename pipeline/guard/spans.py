"""What a call leaves behind in OpenTelemetry: a span for the whole way down, one for each endpoint that was asked, and
the metrics of its conventions. Nothing at all where nobody asked for it; nothing ever of what was asked or answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pipeline.core import genai_names as names
from pipeline.core import telemetry
from pipeline.guard import genai
from pipeline.guard.config import Endpoint
from pipeline.guard.values import Attempt, ModelRequest, Result

Work = Callable[[ModelRequest], Awaitable[Result]]


async def called(request: ModelRequest, work: Work) -> Result:
    """The work, inside a span where spans are wanted."""
    calls = telemetry.model_calls()
    if calls is None:
        return await work(request)
    with calls.around(genai.call_name(request), genai.call_attributes(request)) as told:
        result = await work(request)
        told(genai.result_attributes(result))
        return result


def attempted(request: ModelRequest, endpoint: Endpoint, attempt: Attempt, ended_us: int) -> None:
    """Of an endpoint that was asked; those that were passed over are in the result's attributes."""
    calls = telemetry.model_calls()
    if calls is None or not attempt.asked:
        return
    began_us = ended_us - int(attempt.took_s * 1_000_000)
    calls.asked(
        genai.span_name(attempt), genai.attributes(request, endpoint, attempt), began_us, ended_us, attempt.reason
    )
    shared = genai.metric_attributes(endpoint, attempt)
    calls.measured(names.OPERATION_DURATION, "s", names.DURATION_S, attempt.took_s, shared)
    for kind, tokens in (("input", attempt.tokens.input), ("output", attempt.tokens.output)):
        if tokens is not None:
            more = {**shared, names.TOKEN_TYPE: kind}
            calls.measured(names.TOKEN_USAGE, "{token}", names.TOKENS, tokens, more)
