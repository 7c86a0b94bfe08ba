"""When an endpoint is not asked any more: shared with the endpoints that embed, and so further down."""

from __future__ import annotations

from pipeline.core.breaker import STATES, Breaker, Mark, Permit, State

__all__ = ["STATES", "Breaker", "Mark", "Permit", "State"]
