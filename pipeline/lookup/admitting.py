"""Requests and the admission to the server: who is let in, and what those are told who are not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core import metrics
from pipeline.core.errors import Retryable
from pipeline.lookup.admission import Admission, Reason, Refusal, Ticket
from pipeline.lookup.at_once import Told


class Shed(Retryable):
    """Refused at once, because it could not be answered in time. `retry_after_s` is when to come back."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(f"the server is busy ({refusal.reason}); try again")


def admitted(admission: Admission, tenant: str | None, left_ms: float, keys: int = 1) -> Ticket:
    """Raises Shed."""
    found = admit(admission, tenant, left_ms, keys)
    if isinstance(found, Refusal):
        raise Shed(found)
    return found


def admit(admission: Admission, tenant: str | None, left_ms: float, keys: int = 1) -> Ticket | Refusal:
    """As Admission's, counted."""
    found = admission.admit(tenant, left_ms, keys)
    if isinstance(found, Refusal):
        _COUNT_SHED[found.reason]()
    return found


def late(admission: Admission | None, left_ms: float) -> Refusal | None:
    """As Admission's, counted."""
    found = None if admission is None else admission.late(left_ms)
    if found is not None:
        _COUNT_SHED[found.reason]()
    return found


@contextmanager
def admission_of(
    admission: Admission | None, tenant: str | None, left_ms: float, keys: int = 1, waits: bool = False
) -> Iterator[None]:
    """Around the answering of one request, which tells nothing of the server's load where it `waits` for something else
    than it. Raises Shed."""
    if admission is None:
        yield
        return
    ticket, typical = admitted(admission, tenant, left_ms, keys), False
    try:
        yield
        typical = not waits
    finally:
        admission.done(ticket, typical)


async def shed_problem(request: Request | None, error: Exception) -> Response:
    assert isinstance(error, Shed)
    status, headers, body = shed_answer(error.refusal)
    response = Response(body, status)
    response.raw_headers = headers
    return response


def shed_answer(refusal: Refusal) -> Told:
    """As little work as can be: it is done when there is too much."""
    after, body = b"%d" % max(1, math.ceil(refusal.retry_after_s)), _BODIES[refusal.reason]
    return 503, [_PROBLEM, _NO_STORE, (b"retry-after", after), (b"content-length", b"%d" % len(body))], body


_COUNT_SHED = {reason: metrics.lookup_shed.labels(reason).inc for reason in get_args(Reason)}
_PROBLEM = (b"content-type", b"application/problem+json")
_NO_STORE = (b"cache-control", b"no-store")


_BODIES = {
    reason: msgspec.json.encode(
        {
            "type": "about:blank",
            "title": "Service Unavailable",
            "status": 503,
            "detail": f"{told}; try again later",
            "reason": reason,
        }
    )
    for reason, told in (
        ("overload", "the server has as much to do as it can answer in time"),
        ("too late", "the server can't answer within what is left of the budget"),
        ("tenant share", "this tenant has more on its way than its share"),
    )
}
