"""How many rows share one join value: measured by a source's connector, judged where sections are composed."""

from __future__ import annotations

import msgspec


class FanOut(msgspec.Struct, frozen=True):
    """Parents per join value: a change of one row of a section rewrites so many when the section is copied."""

    average: float
    most: int

    def times(self, around: FanOut) -> FanOut:
        """Of a section inside another one that is shown by `around` parents: an upper bound, and the mean of both."""
        return FanOut(self.average * around.average, self.most * around.most)
