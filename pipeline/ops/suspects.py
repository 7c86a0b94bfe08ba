"""Differences that were seen once, until they are gone or have lasted long enough to count. Pure.

A difference lasts where the source stood still since it was first asked and the store still says otherwise. How long
that must be so is the `patience`: none where it is known what has been applied, since then a few looks are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.ops.difference import Difference, differences

ROUNDS_MAX = 4
ROUND_PAUSE_S = 0.5
DOUBLINGS_MAX = 4
"""With patience, the pause grows from look to look up to 8 s: each look reads the source."""
MOVING_PATIENCES = 3
"""Keys that change again and again are watched for so many times the patience."""


@dataclass
class _Suspect:
    """`source` is what the source said at `since_s`: when it was first asked, or when it had last moved."""

    source: bytes | None
    since_s: float
    lasting: list[Difference] = field(default_factory=list)


class Suspects:
    """Some keys under suspicion. Each round: `begin` for those that are new, `judge` each pending one, `pause_s`."""

    def __init__(self, keys: Sequence[str], patience_s: float, now_s: float) -> None:
        self._new = dict.fromkeys(keys)
        self._known: dict[str, _Suspect] = {}
        self._patience_s, self._ends_s = patience_s, now_s + MOVING_PATIENCES * patience_s
        self._stalled, self._before = 0, len(self._new)

    @property
    def pending(self) -> list[str]:
        return [*self._known, *self._new]

    @property
    def lasting(self) -> dict[str, list[Difference]]:
        return {key: suspect.lasting for key, suspect in self._known.items() if suspect.lasting}

    @property
    def moving(self) -> list[str]:
        return [key for key, suspect in self._known.items() if not suspect.lasting]

    def unasked(self, keys: Sequence[str]) -> list[str]:
        """Those of which it isn't known what the source said before."""
        return [key for key in keys if key in self._new]

    def begin(self, keys: Sequence[str], source: Mapping[str, bytes | None], now_s: float) -> None:
        for key in keys:
            del self._new[key]
            self._known[key] = _Suspect(source.get(key), now_s)

    def judge(self, key: str, stored: bytes | None, source: bytes | None, now_s: float) -> None:
        """`stored` was read after `begin`, `source` after that."""
        suspect = self._known[key]
        lasting, moved = settle(suspect.source, stored, source)
        if lasting:
            suspect.lasting = lasting
        elif moved:
            self._known[key] = _Suspect(source, now_s)
        else:
            del self._known[key]

    def pause_s(self, now_s: float) -> float | None:
        """After a round: how long to wait before the next; None: what is left has lasted."""
        count = len(self.pending)
        self._stalled = self._stalled + 1 if count == self._before else 1
        self._before = count
        if not count:
            return None
        youngest_s = min([now_s - suspect.since_s for suspect in self._known.values()], default=0.0)
        left_s = min(self._patience_s - youngest_s, self._ends_s - now_s)
        if self._stalled >= ROUNDS_MAX and left_s <= 0:
            return None
        if left_s <= 0:
            return ROUND_PAUSE_S
        doubled = ROUND_PAUSE_S * 2 ** min(self._stalled, DOUBLINGS_MAX)
        return float(max(ROUND_PAUSE_S, min(doubled, left_s)))


def settle(before: bytes | None, stored: bytes | None, after: bytes | None) -> tuple[list[Difference], bool]:
    """(differences in fields and sections where the source stood still, whether others were moving).

    A field that the source changed in between may show either of its values.
    """
    now = differences(after, stored)
    if not now:
        return [], False
    earlier_tops = {difference.top for difference in differences(before, stored)}
    moved_tops = {difference.top for difference in differences(before, after)}
    both = [difference for difference in now if difference.top in earlier_tops or "" in earlier_tops]
    lasting = [difference for difference in both if not moved_tops & {difference.top, ""}]
    return lasting, len(both) > len(lasting)
