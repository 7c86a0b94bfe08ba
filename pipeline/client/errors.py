"""What a client raises, the same over HTTP and straight from Redis. A bundle that does not exist is no error.

ClientError
├── UnknownContext        nobody serves a context of this name
├── BadRequest            what was asked can't be answered ever; carries all mistakes at once
├── NotAllowed            no credential, a wrong one, or one that does not open this
├── NotOffered            this mode or this server does not do that at all
└── Unavailable           no answer now: the server or the store is away, or too busy
    └── DeadlineExceeded  nothing came inside the budget
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.errors import CtxpipeError


class ClientError(CtxpipeError):
    """Root of the tree; its text is fit to be shown as it is."""


class UnknownContext(ClientError):
    """Nobody serves a context of this name."""


class BadRequest(ClientError):
    """`mistakes`: a sentence each, what is wrong and what is known instead."""

    exit_code = 2

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("; ".join(self.mistakes))


class NotAllowed(ClientError):
    """Says nothing of what is there."""


class NotOffered(ClientError):
    """The text says what does it instead."""


class Unavailable(ClientError):
    """Asking again may help; `retry_after_s` where the server said when."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(text)


class DeadlineExceeded(Unavailable):
    """Nothing came inside the budget, not even a default bundle."""
