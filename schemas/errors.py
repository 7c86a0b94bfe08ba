"""What schemas refuse: a spec that a person has to mend, and a record that can never be read."""

from __future__ import annotations

from collections.abc import Sequence


class SpecError(ValueError):
    """All mistakes of one file, each `file:line: where: what is wrong; how to mend it`."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


class DecodeError(ValueError):
    """A record that no retry makes readable; one sentence says why."""
