"""OpenTelemetry's names for calls to models, in one place: they are still being worked on, and change.

As of semantic-conventions-genai, November 2026, status Development. Own names begin with `ctxpipe.`.
"""

from __future__ import annotations

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
CHAT, EMBEDDINGS = "chat", "embeddings"
"""Operations."""
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Bounds of the two histograms, as the conventions ask for them."""
