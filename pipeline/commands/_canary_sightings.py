"""What one source's canary has written, where it has come out, and whether that is in time: the decisions of `ctxpipe
canary`, without clock and without I/O. Times that end in `_s` are of one monotonic clock, of who writes and looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.commands._canary_judging import Shown

ATTEMPTS_MAX = 1_000
"""Of one source. A stall that takes longer is told as long as it is; only its first rows are not counted any more."""
UNSEEN = -1


class Place(NamedTuple):
    """Where rows have to come out: lookups or searches at one address. `limit_s`: a row that is shown and older than
    this should have been followed by another."""

    kind: Literal["lookups", "searches"]
    url: str
    limit_s: float

    def __str__(self) -> str:
        return f"{self.kind} at {self.url}"


class Verdict(NamedTuple):
    """`up` None: it is too early to tell. `age_s` of the oldest row that lookups show; None while none is known.
    `reason` is empty while all is well; `late` are the rows or contexts that are."""

    up: bool | None
    age_s: float | None
    reason: str = ""
    late: tuple[str, ...] = ()


@dataclass(slots=True)
class _Attempt:
    """One writing of all rows. `committed_s` None: the source has not said that it took them."""

    began_s: float
    committed_s: float | None = None


class Sightings:
    """`slots`: row → the Kafka partition of its key, None where that is not known. `contexts_limit_s`: how old lookups
    in other contexts may call the source."""

    def __init__(
        self, slots: Mapping[int, int | None], places: Sequence[Place], contexts_limit_s: float, began_s: float
    ) -> None:
        self._slots, self._places, self._began_s = dict(slots), list(places), began_s
        self._contexts_limit_s = contexts_limit_s
        self._attempts: dict[int, _Attempt] = {}
        self._newest_us = UNSEEN
        self._refusal = ""
        self._unanswered: dict[Place, str] = {}
        self._seen: dict[tuple[Place, int], int] = {}
        self._seen_s: dict[tuple[Place, int], float] = {}
        self._baseline: dict[tuple[Place, int], int] = {}
        self._stated_s: dict[tuple[str, str], float] = {}

    def next_stamp(self, now_us: int) -> int:
        """What the next rows are told apart by: the time, but never an earlier one than before."""
        return max(now_us, self._newest_us + 1)

    def attempt(self, stamp_us: int, now_s: float) -> None:
        """Before rows are sent to the source."""
        self._attempts[stamp_us] = _Attempt(now_s)
        self._newest_us = stamp_us
        self._forget()

    def committed(self, stamp_us: int, now_s: float) -> None:
        """The source has them."""
        self._refusal = ""
        attempt = self._attempts.get(stamp_us)
        if attempt is not None:
            attempt.committed_s = now_s

    def refused(self, reason: str) -> None:
        """The source did not say that it has them."""
        self._refusal = reason

    def unanswered(self, place: Place, reason: str) -> None:
        """The client's words begin with the address, which is said already."""
        self._unanswered[place] = reason.removeprefix(place.url).lstrip(": ")

    def shown(self, place: Place, rows: Sequence[Shown], now_s: float, now_us: int) -> list[float]:
        """What was answered there. Gives, for each row that was waited for and has come through, in seconds how long
        that took since its commit; also for those that a later one had replaced meanwhile, so that a stall counts for
        all that it held up."""
        self._unanswered.pop(place, None)
        return [took for row in rows if row.slot in self._slots for took in self._came(place, row, now_s, now_us)]

    def stated(self, url: str, context: str, age_s: float, now_s: float) -> None:
        """How old a lookup in another context called the source."""
        self._stated_s[url, context] = now_s - age_s

    def waits(self, place: Place) -> float | None:
        """Since when the newest rows should come out there; None when they all have, or when none were written."""
        attempt = self._attempts.get(self._newest_us)
        if attempt is None or attempt.committed_s is None:
            return None
        if all(self._seen.get((place, slot), UNSEEN) >= self._newest_us for slot in self._slots):
            return None
        return attempt.committed_s

    def verdict(self, now_s: float) -> Verdict:
        lookups = [(place, slot) for place in self._places for slot in self._slots if place.kind == "lookups"]
        age_s = max((now_s - self._seen_s[key] for key in lookups if key in self._seen_s), default=None)
        age_s = None if age_s is None else max(0.0, age_s)
        late = {place: slots for place in self._places if (slots := self._late(place, now_s))}
        contexts = [key for key, at_s in self._stated_s.items() if self._is_late(at_s, self._contexts_limit_s, now_s)]
        if late or contexts:
            return Verdict(False, age_s, self._reason(late, contexts, now_s), self._names(late, contexts))
        come = all((place, slot) in self._seen for place in self._places for slot in self._slots)
        return Verdict(True if come else None, age_s)

    def _came(self, place: Place, row: Shown, now_s: float, now_us: int) -> list[float]:
        key, stamp = (place, row.slot), row.written_us
        before = self._seen.get(key, UNSEEN)
        if stamp not in self._attempts:
            if self._is_of_before(key, stamp):
                self._seen_s.setdefault(key, now_s - max(0.0, (now_us - stamp) / 1e6))
                return []
            # Another role writes, too: rows of one key keep their order, so that ours before it have come through.
            stamp = max((ours for ours in self._attempts if ours < stamp), default=UNSEEN)
        if stamp <= before:
            return []
        self._seen[key] = stamp
        came = {ours: one for ours, one in self._attempts.items() if before < ours <= stamp}
        newest = came[stamp]
        self._seen_s[key] = newest.began_s if newest.committed_s is None else newest.committed_s
        return [max(0.0, now_s - one.committed_s) for one in came.values() if one.committed_s is not None]

    def _is_of_before(self, key: tuple[Place, int], stamp: int) -> bool:
        """Written before this role began, even by a clock that was ahead."""
        return stamp <= self._baseline.setdefault(key, stamp) or stamp < next(iter(self._attempts), stamp + 1)

    def _late(self, place: Place, now_s: float) -> list[int]:
        return [
            slot
            for slot in self._slots
            if self._is_late(self._seen_s.get((place, slot), self._began_s), place.limit_s, now_s)
        ]

    def _is_late(self, since_s: float, limit_s: float, now_s: float) -> bool:
        """It had as much time since the role began, too."""
        return now_s - max(since_s, self._began_s) > limit_s

    def _reason(self, late: Mapping[Place, Sequence[int]], contexts: Sequence[tuple[str, str]], now_s: float) -> str:
        told = [f"the source takes no rows: {self._refusal}"] if self._refusal else []
        for place, slots in late.items():
            error = self._unanswered.get(place)
            told.append(f"{place}: {error}" if error else self._words(place, slots, now_s))
        told += [
            f"lookups in context {name} at {url} state an age of {self._age_of(url, name, now_s)}"
            for url, name in contexts
        ]
        return "; ".join(told)

    def _words(self, place: Place, slots: Sequence[int], now_s: float) -> str:
        known = [self._seen_s[place, slot] for slot in slots if (place, slot) in self._seen_s]
        shown = f"rows of {now_s - min(known):.0f} s ago" if known else "no row at all"
        part = "" if len(slots) == len(self._slots) else f" in {', '.join(map(self._name, slots))}"
        return f"{place} show {shown}{part}"

    def _age_of(self, url: str, context: str, now_s: float) -> str:
        return f"{now_s - self._stated_s[url, context]:.0f} s"

    def _names(self, late: Mapping[Place, Sequence[int]], contexts: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        rows = sorted({slot for slots in late.values() for slot in slots})
        return (*map(self._name, rows), *(f"context {name}" for name in sorted({name for _, name in contexts})))

    def _name(self, slot: int) -> str:
        partition = self._slots[slot]
        return f"row {slot}" if partition is None else f"partition {partition}"

    def _forget(self) -> None:
        """What has come through everywhere, and the oldest of more than can be kept."""
        keys = [(place, slot) for place in self._places for slot in self._slots]
        through = min((self._seen.get(key, UNSEEN) for key in keys), default=UNSEEN)
        stamps = list(self._attempts)
        kept = {stamp: self._attempts[stamp] for stamp in stamps[-ATTEMPTS_MAX:] if stamp >= through}
        self._attempts = kept
