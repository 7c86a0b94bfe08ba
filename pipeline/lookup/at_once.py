"""Between a connection and the application: answers that need to wait for nothing, without a task of their own.

A task, its scope and its messages cost several times what an answer from memory costs, or a refusal. Where those come
by the thousand, what the server has left for the others is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from pipeline.lookup.admission import Ticket

TICKET = "ctxpipe.ticket"
"""Where in the scope of a request its ticket is, if it was let in already."""

Headers = Sequence[tuple[bytes, bytes]]
Told = tuple[int, list[tuple[bytes, bytes]], bytes]
"""(status, headers, body)."""
AtOnce = Told | Ticket | None
"""The answer; or the ticket of a request that was let in and goes to the application as any other; or nothing."""

AtOnceOf = Callable[[str, bytes, Headers, bool], AtOnce]


@runtime_checkable
class AnswersAtOnce(Protocol):
    """An ASGI application that knows some answers without waiting."""

    def at_once(self, path: str, query: bytes, headers: Headers, over_tls: bool) -> AtOnce:
        """Of a GET without a body. Raises nothing: what is wrong with a request, the application tells."""
        ...


def at_once_of(app: Any) -> AtOnceOf | None:
    """Of any application; None where it has no such answers."""
    return app.at_once if isinstance(app, AnswersAtOnce) else None
