"""What is wrong with a suite itself: no case ran, nothing is decided, a person has to mend it (exit code 3)."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.guard.errors import HarnessError


class SuiteError(HarnessError):
    """All mistakes of a suite's files, each `file:line: what is wrong; how to mend it`."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))
