"""Who carries one question to one endpoint: the HTTP client, a recording of it, or a script in a test."""

from __future__ import annotations

from typing import Protocol

from pipeline.guard.config import Endpoint
from pipeline.guard.values import ModelRequest, RawAnswer


class ModelClient(Protocol):
    """Asks once; trying again, checking and choosing are the guard's.

    `until_s` is on the guard's clock (`Clock.monotonic_s`). What the endpoint did, a hang or a reset included, is a
    RawAnswer, never an exception; only the caller's own CancelledError passes. The guard ends a `send` that is not back
    a moment after `until_s`. Called by many tasks of one event loop at once. What goes over the wire is
    `wire.body_of(request, endpoint)`: with `endpoint.model` and `endpoint.revision` that is what recordings are keyed
    by. A mistake of the harness (a recording that is missing) may be raised as `errors.HarnessError`, which the guard
    lets pass.
    """

    async def send(self, request: ModelRequest, endpoint: Endpoint, until_s: float) -> RawAnswer: ...
