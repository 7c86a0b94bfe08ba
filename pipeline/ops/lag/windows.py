"""The last samples of one partition for one group, and the verdict on them: Burrow's rules with their faults mended.

The order is that of Burrow's code. What differs, and why:

- Lag is taken on our own clock, not when a commit comes, so it does not freeze with the consumer.
- So much lag may be allowed, and a lag that stays the same is no warning.
- Offsets tell no commits that repeat them. Who is assigned the partition tells STOP (nobody) from STALL (somebody, and
  nothing moves). Without that knowledge, as with consumers that assign partitions to themselves, it is STOP.
- What was there earlier in the window does not hide what stands now: standing counts from when records began to wait.
  It is named after three commit intervals, or twice the longest pause this partition made before, not after a window.
- A log that ends before the commit is no lag of zero: it was made anew, or the offset was set where nothing is.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

from pipeline.ops.lag.model import OK, REWIND, STALL, STOP, UNKNOWN, WARN
from pipeline.ops.lag.trend import SAMPLES_MAX, slope

STOP_S_MAX = 300.0
COMPLETE_MIN = 0.5
CONFIRMED_AFTER = 2
"""Samples in a row before a verdict that one odd answer could give: after a change of leaders, ends go back for a
moment."""
PAUSES_KEPT = 5


@dataclass(frozen=True, slots=True)
class Rules:
    """`samples` a verdict looks back on, taken every `interval_s`; consumers commit every `commit_interval_s`."""

    samples: int = 10
    interval_s: float = 10.0
    commit_interval_s: float = 5.0
    stuck_s: float = 300.0
    rebalance_s_max: float = 60.0
    churn_s: float = 600.0
    churn_changes: int = 3

    @property
    def stands_s(self) -> float:
        """Standing so long is no pause any more."""
        return min(STOP_S_MAX, max(3 * self.commit_interval_s, 2 * self.interval_s))


@dataclass(frozen=True, slots=True)
class Look:
    """One sample of a partition. `lag` is never negative; `beyond`: the commit lies behind the end of the log."""

    at_s: float
    committed: int | None
    start: int
    end: int
    lag: int
    beyond: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    status: str
    reason: str = ""


def look(at_s: float, committed: int | None, start: int, end: int, reset: str) -> Look:
    """R2: without a commit, what a consumer would read by its reset policy waits."""
    if committed is None:
        return Look(at_s, None, start, end, max(0, end - start) if reset == "earliest" else 0)
    return Look(at_s, committed, start, end, max(0, end - max(committed, start)), committed > end)


class Window:
    """Of one partition. `add` a look at every sample, then ask for the `verdict`."""

    __slots__ = (
        "_allowed", "_alone", "_assigned", "_pauses", "_rules", "_waiting_since_s",
        "beyond", "looks", "moved_s", "verdict_now",
    )  # fmt: skip

    def __init__(self, rules: Rules, allowed: int) -> None:
        self._rules, self._allowed = rules, allowed
        self.looks: deque[Look] = deque(maxlen=max(rules.samples, SAMPLES_MAX))
        self._pauses: deque[float] = deque(maxlen=PAUSES_KEPT)
        self._waiting_since_s: float | None = None
        self._assigned: bool | None = None
        self._alone = False
        self.moved_s = 0.0
        """When the commit was first seen where it is."""
        self.beyond = 0
        self.verdict_now = Verdict(UNKNOWN, "no sample yet")

    def add(self, new: Look) -> None:
        last = self.looks[-1] if self.looks else None
        if last is not None and (new.end < last.end or (new.committed is None) != (last.committed is None)):
            self.looks.clear()  # another log, or another life of the group: what was before tells nothing
            self._pauses.clear()
            last = None
        if last is None or new.committed != last.committed:
            if last is not None and self._waiting_since_s is not None:
                self._pauses.append(new.at_s - max(self.moved_s, self._waiting_since_s))
            self.moved_s = new.at_s
        if new.lag <= self._allowed:
            self._waiting_since_s = None
        elif self._waiting_since_s is None:
            self._waiting_since_s = new.at_s
        self.beyond = self.beyond + 1 if new.beyond else 0
        self.looks.append(new)

    def judge(self, assigned: bool | None, settled_s: float = 0.0) -> Verdict:
        """`assigned`: whether a member of the group reads the partition, None not known; `settled_s`: when the last
        rebalance was over."""
        if assigned:
            self._alone = False
        elif assigned is False and self._assigned is False and self._advanced(list(self.looks)[-2:]):
            self._alone = True  # a consumer that assigns partitions to itself: the group has no members, and gets on
        self._assigned = assigned
        self.verdict_now = self._verdict(None if self._alone else assigned, settled_s)
        return self.verdict_now

    @property
    def last(self) -> Look:
        return self.looks[-1]

    @property
    def complete(self) -> float:
        """Share of the samples that verdicts look back on."""
        return min(1.0, len(self.looks) / self._rules.samples)

    def standing_s(self, since_s: float = 0.0) -> float:
        """For so long records have waited and the commit has not moved."""
        if self._waiting_since_s is None:
            return 0.0
        return max(0.0, self.last.at_s - max(self.moved_s, self._waiting_since_s, since_s))

    def rate(self, of_end: bool) -> float | None:
        """Records/s that came, or that were committed, over the window."""
        first, last = self.looks[0], self.last
        span_s = last.at_s - first.at_s
        if span_s <= 0 or first.committed is None or last.committed is None:
            return None
        return (last.end - first.end if of_end else last.committed - first.committed) / span_s

    def _verdict(self, assigned: bool | None, settled_s: float) -> Verdict:
        last = self.last
        if last.committed is None:
            return self._without_commit(last)
        if last.beyond and self.beyond >= CONFIRMED_AFTER:
            beyond = last.committed - last.end
            return Verdict(REWIND, f"the log ends {beyond} records before the commit: made anew, or set beyond its end")
        if last.lag <= self._allowed:
            return Verdict(OK)
        stopped = self._stopped(assigned, settled_s)
        if stopped is not None:
            return stopped
        back = self._rewound()
        if back:
            return Verdict(REWIND, f"the commit went back by {back} records")
        if assigned is not False and self._stands(settled_s):
            return Verdict(STALL, f"a consumer is there, but nothing moved for {self.standing_s(settled_s):.0f} s")
        if self.verdict_now.status in (STOP, STALL) and self.standing_s() > 0:
            return self.verdict_now  # a rebalance has begun anew what still stands
        return self._falls_behind(settled_s) or Verdict(OK)

    def _without_commit(self, last: Look) -> Verdict:
        if last.lag <= self._allowed:
            return Verdict(OK)
        return Verdict(UNKNOWN, "the group has not committed here yet")

    def _stopped(self, assigned: bool | None, settled_s: float) -> Verdict | None:
        """Rule 1. The lag that was zero in the window does not speak for a group without consumers."""
        if assigned is False and len(self.looks) >= CONFIRMED_AFTER and self.last.at_s > self.moved_s:
            return Verdict(STOP, "records wait, and nobody consumes them")
        if assigned is None and self._stands(settled_s):
            return Verdict(STOP, f"no commit for {self.standing_s(settled_s):.0f} s although records wait")
        return None

    def _stands(self, settled_s: float) -> bool:
        longest_s = max(self._pauses, default=0.0)
        return self.standing_s(settled_s) >= min(STOP_S_MAX, max(self._rules.stands_s, 2 * longest_s))

    def _rewound(self) -> int:
        """Rule 2: how far it went back, 0 once it was there again."""
        reached, back = 0, 0
        for one in self._judged():
            committed = one.committed or 0
            if committed < reached:
                back = max(back, reached - committed)
            elif committed >= reached:
                reached, back = committed, 0
        return back

    def _falls_behind(self, settled_s: float) -> Verdict | None:
        """Rules 3 and 5: records waited all the time, and the lag never shrank while commits advanced; or, as commits
        come in leaps, all of the later half of a whole window lies above all of the earlier."""
        looks = [one for one in self._judged() if one.at_s > settled_s]  # lag of a rebalance is nobody's pace
        if len(looks) < max(3, COMPLETE_MIN * self._rules.samples) or not self._advanced(looks):
            return None
        lags = [one.lag for one in looks]
        if min(lags) <= self._allowed:  # rule 3
            return None
        never_less = all(later >= earlier for earlier, later in itertools.pairwise(lags))
        half = len(lags) // 2
        higher = len(looks) >= self._rules.samples and min(lags[half:]) > max(lags[:half])
        if not (never_less or higher):
            return None
        band = max(1.0, 0.01 * (self.rate(of_end=True) or 0.0))
        velocity = slope([(one.at_s, one.lag) for one in looks])
        if velocity <= band:
            return None
        return Verdict(WARN, f"commits advance, but {velocity:.0f} records/s more come than are done")

    def _judged(self) -> list[Look]:
        return list(self.looks)[-self._rules.samples :]

    @staticmethod
    def _advanced(looks: list[Look]) -> bool:
        return (looks[-1].committed or 0) > (looks[0].committed or 0)
