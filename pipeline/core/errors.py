"""The error tree: what failed, and what the loop that meets it does.

CtxpipeError
├── Retryable          try again with backoff: the store, the broker or the source is away for a moment
├── Poison             this record can never work: set it aside in the dead-letter topic and go on
├── Fatal              go no further: guessing on would lose or corrupt data; the supervisor or a person decides
│   └── PositionLost   the source no longer has what comes after our position
├── ConfigError        a person wrote something that can't work (exit code 2); carries all mistakes at once
└── EnvironmentProblem a server, port, permission or package is missing (exit code 3); says how to mend it
"""

from __future__ import annotations

from collections.abc import Sequence


class CtxpipeError(Exception):
    """Root of the tree; its text is fit to be shown to a person as it is."""

    exit_code = 3


class Retryable(CtxpipeError):
    """Try again with backoff."""


class Poison(CtxpipeError):
    """Set the record aside."""


class Fatal(CtxpipeError):
    """Stop loudly."""


class PositionLost(Fatal):
    """The source cannot continue from our position without a gap."""


class ConfigError(CtxpipeError):
    """All mistakes of one file or command line, each a sentence that says what, where and how to mend it."""

    exit_code = 2

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


class EnvironmentProblem(CtxpipeError):
    """Something outside is missing or refuses; the text says how to mend it."""
