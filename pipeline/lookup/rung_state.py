"""Whether a rung of the lookup ladder is worth asking now: one that fails or is silent is passed over at once, so that
a lookup keeps its budget for the rungs below."""

from __future__ import annotations

from collections.abc import Callable

FAILURES_MAX = 3
PROBE_EVERY_S = 0.1
PATIENCE_S = 0.003
UNANSWERED_S_MAX = 0.02
STALL_S = 0.002
"""An event loop that stood still finds answers as it goes on; so long it is given to hand them out."""


class RungState:
    """Per question `begin`, then with its number exactly one of `succeeded`, `failed`, `timed_out` and `gave_up`. All
    are synchronous and take about a microsecond; used in one event loop.

    The rung is passed over after `failures_max` failures in a row, or while the oldest question has no answer for
    longer than `unanswered_s_max`. Questions that fail together count once: one moment's trouble is one failure. Then
    one question in `probe_every_s` is let through, and any answer ends it.
    """

    def __init__(
        self,
        monotonic_s: Callable[[], float],
        failures_max: int = FAILURES_MAX,
        unanswered_s_max: float = UNANSWERED_S_MAX,
        probe_every_s: float = PROBE_EVERY_S,
        patience_s: float = PATIENCE_S,
        changed: Callable[[RungState], None] | None = None,
    ) -> None:
        """`patience_s`: a caller that gave up sooner has told nothing of the rung. `changed` is called when the rung is
        passed over, and when it is asked again."""
        self._monotonic_s, self._changed = monotonic_s, changed
        self._failures_max, self._unanswered_s_max = failures_max, unanswered_s_max
        self._probe_every_s, self._patience_s = probe_every_s, patience_s
        self._begun = self._answered = 0
        self._open: dict[int, float] = {}
        self._overtaken: dict[int, float] = {}
        self._failures = 0
        self._failed_at_s: float | None = None
        self._suspect: tuple[int, float] | None = None
        self._probe_at_s = 0.0
        self._probe: int | None = None
        self.reason: str | None = None
        """Why the rung is passed over, for people; None while it is asked."""

    @property
    def passed_over(self) -> bool:
        return self.reason is not None

    @property
    def closed(self) -> bool:
        """Whether `begin` would give None."""
        return self.reason is not None and self._monotonic_s() < self._probe_at_s

    @property
    def unanswered(self) -> int:
        """Questions on their way."""
        return len(self._open) + len(self._overtaken)

    def begin(self) -> int | None:
        """The number of a new question; None when the rung is to be passed over."""
        now_s = self._monotonic_s()
        if self.reason is None and self._open:
            self._look_at_oldest(now_s)
        if self.closed:
            return None
        self._begun += 1
        self._open[self._begun] = now_s
        if self.reason is not None:
            self._probe, self._probe_at_s = self._begun, now_s + self._probe_every_s
        return self._begun

    def succeeded(self, number: int) -> None:
        """Also for an answer that says no such bundle: the rung answers."""
        if self._end(number) is None:
            return
        self._answered = max(self._answered, number)
        self._failures, self._failed_at_s, self._suspect = 0, None, None
        if self.reason is not None:
            self.reason, self._probe = None, None
            self._tell()

    def failed(self, number: int, why: str) -> None:
        """`why` is for people, e.g. the text of the error."""
        began_s = self._end(number)
        if began_s is not None:
            self._fail(number, began_s, why)

    def timed_out(self, number: int) -> None:
        """The caller's time for this rung is over, without an answer."""
        began_s = self._end(number)
        if began_s is not None and self._monotonic_s() - began_s >= self._patience_s:
            self._fail(number, began_s, "no answer in time")

    def gave_up(self, number: int) -> None:
        """The caller needs no answer any more: says nothing of the rung."""
        self._end(number)

    def _end(self, number: int) -> float | None:
        began_s = self._open.pop(number, None)
        return began_s if began_s is not None else self._overtaken.pop(number, None)

    def _fail(self, number: int, began_s: float, why: str) -> None:
        now_s = self._monotonic_s()
        if self.reason is not None:
            if number == self._probe:
                self._probe = None
            return
        if self._failed_at_s is not None and began_s < self._failed_at_s:
            return
        self._failures, self._failed_at_s = self._failures + 1, now_s
        if self._failures >= self._failures_max:
            self._pass_over(now_s, f"{self._failures} failures in a row, the last: {why}")

    def _look_at_oldest(self, now_s: float) -> None:
        while self._open and (number := next(iter(self._open))) < self._answered:
            self._overtaken[number] = self._open.pop(number)  # later ones were answered: it is alone with its trouble
        if not self._open:
            return
        number, began_s = next(iter(self._open.items()))
        if now_s - began_s <= self._unanswered_s_max:
            return
        if self._suspect is None or self._suspect[0] != number:
            self._suspect = number, now_s
        elif now_s - self._suspect[1] >= STALL_S:
            self._pass_over(now_s, f"no answer for {(now_s - began_s) * 1000:.0f} ms")

    def _pass_over(self, now_s: float, reason: str) -> None:
        self.reason, self._suspect = reason, None
        self._failures, self._failed_at_s = 0, None
        self._probe_at_s = now_s + self._probe_every_s
        self._tell()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed(self)
