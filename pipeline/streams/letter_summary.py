"""How many dead letters wait, for which bundles, since when, and which of them expire: what the collector shows.

A topic that drops old letters drops them whether somebody looked or not. What was handled is known beside it, so that
what went away unhandled can be counted, also by who begins long afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.core import metrics
from pipeline.core.clock import Clock, SystemClock
from pipeline.streams.decisions import OPEN, Verdicts
from pipeline.streams.letter_box import DeadLetterBox, Found, Retention
from pipeline.streams.offset_reader import Extent, OffsetReader

RETENTION_LOOK_S = 300.0
WAITING_MAX = 1_000_000
"""Letters that a watch remembers one by one; of more, it tells how many."""


class DeadLetterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Of one context or source. `waiting` counts those that failed again (`failed`); `bundles` are those that letters
    name, `unplaced` the waiting letters that name none. `oldest_at_ms` None: nothing waits. `expiry_s` None: nothing
    that waits expires by time, or nobody may tell us (`retention_known`). `expired`: gone without a redrive or a
    discard, since the topic was made."""

    name: str
    waiting: int = 0
    failed: int = 0
    bundles: int = 0
    unplaced: int = 0
    oldest_at_ms: int | None = None
    oldest_age_s: float | None = None
    expiry_s: float | None = None
    expired: int = 0
    kept_ms: int | None = None
    kept_bytes: int | None = None
    retention_known: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return msgspec.structs.asdict(self)


async def summaries(
    bootstrap_servers: str, names: Iterable[str], clock: Clock | None = None, **security: Any
) -> list[DeadLetterSummary]:
    """Of these contexts and sources, read from the beginning; who asks again and again keeps a LetterWatch. Raises
    Retryable while Kafka is away, EnvironmentProblem where it refuses us."""
    async with AsyncExitStack() as stack:
        watch = LetterWatch(bootstrap_servers, names, clock, **security)
        stack.push_async_callback(watch.close)
        return await watch.look()


def publish(summary: DeadLetterSummary) -> None:
    """Sets the metrics ctxpipe_dead_letters_*. What is not known is left out instead of being zero."""
    name = summary.name
    metrics.dead_letters.labels(name).set(summary.waiting)
    metrics.dead_letters_bundles.labels(name).set(summary.bundles)
    metrics.dead_letters_oldest.labels(name).set(summary.oldest_age_s or 0.0)
    if summary.expiry_s is None:
        metrics.dead_letters_expiry.remove(name)
    else:
        metrics.dead_letters_expiry.labels(name).set(summary.expiry_s)
    # An absolute number: after a restart the counter stands where it stood, and alerts on its growth stay silent.
    metrics.dead_letters_expired.labels(name).inc(max(0, summary.expired - _expired_shown.get(name, 0)))
    _expired_shown[name] = summary.expired


_expired_shown: dict[str, int] = {}


class LetterWatch:
    """Looks at the letters of some contexts and sources again and again; each look reads what is new only.

    Not for several tasks at once. Read-only: it needs to describe and read `ctxpipe.NAME.dead-letter` and
    `ctxpipe.NAME.dead-letter-decisions`.
    """

    def __init__(
        self, bootstrap_servers: str, names: Iterable[str], clock: Clock | None = None, **security: Any
    ) -> None:
        self._clock = clock or SystemClock()
        self._reader = reader = OffsetReader(bootstrap_servers, **security)
        boxes = [DeadLetterBox(bootstrap_servers, name, reader, **security) for name in dict.fromkeys(names)]
        self._watched = [_Watched(box) for box in boxes]

    async def look(self) -> list[DeadLetterSummary]:
        """One for each name that has a topic, in their order. Raises Retryable while Kafka is away."""
        existing = await self._reader.topics.existing()
        found = []
        for watched in self._watched:
            watched.box.know(existing)
            found.append(await watched.look(self._clock))
        return [summary for summary in found if summary is not None]

    async def close(self) -> None:
        """Closes the connections; the watch may be used again."""
        await self._reader.close()


class _Waiting(msgspec.Struct, frozen=True, gc=False):
    written_ms: int
    identity: int
    failed: bool
    keys: tuple[int, ...]
    """Hashes: what counts is how many there are."""


@dataclass(slots=True)
class _Watched:
    box: DeadLetterBox
    next_letter: int = 0
    next_decision: int = 0
    verdicts: Verdicts = field(default_factory=Verdicts)
    letters: dict[int, _Waiting] = field(default_factory=dict)
    newest: dict[int, int] = field(default_factory=dict)
    """Identity → the number of the waiting letter that stands for it."""
    uncounted: int = 0
    """Letters beyond WAITING_MAX."""
    repeated: int = 0
    """Letters below `first` of which a newer one was known to stand for them."""
    repeats: set[int] = field(default_factory=set)
    retention: Retention = field(default_factory=Retention)
    retention_at_s: float | None = None

    async def look(self, clock: Clock) -> DeadLetterSummary | None:
        extent = await self.box.extent()
        if extent is None:
            self._forget()
            return None
        if extent.end < self.next_letter:  # somebody made the topic anew
            self._forget()
        decided = await self._read_decisions()
        if decided and self.uncounted:
            self._forget()
            await self._read_decisions()
        async for part in self.box.oldest_first(max(self.next_letter, extent.first), extent.end):
            for one in part:
                self._take(one)
        self.next_letter = extent.end
        if self.retention_at_s is None or clock.monotonic_s() - self.retention_at_s > RETENTION_LOOK_S:
            self.retention, self.retention_at_s = await self.box.retention(), clock.monotonic_s()
        self._drop_below(extent.first)
        return self._summary(extent, clock.now_us() // 1000)

    def _forget(self) -> None:
        self.next_letter = self.next_decision = self.repeated = self.uncounted = 0
        self.verdicts = Verdicts()
        self.letters, self.newest, self.repeats = {}, {}, set()

    async def _read_decisions(self) -> bool:
        """Whether there were new ones."""
        before = self.next_decision
        async for decision, after in self.box.decisions(self.next_decision):
            self.verdicts.add(decision)
            self.next_decision = after
            for first, last in decision.numbers:
                numbers = range(first, last + 1) if last - first < len(self.letters) else list(self.letters)
                for number in numbers:
                    if first <= number <= last and number in self.letters:
                        self._decide(number)
        return self.next_decision > before

    def _decide(self, number: int) -> None:
        one = self.letters[number]
        decision = self.verdicts.of(number, one.written_ms)
        if decision is None:
            return
        if decision.outcome in OPEN:
            self.letters[number] = msgspec.structs.replace(one, failed=decision.outcome == "failed")
        else:
            del self.letters[number]
            self.newest.pop(one.identity, None)

    def _take(self, found: Found) -> None:
        identity = hash(found.letter.identity)
        former = self.newest.get(identity)
        if former is not None:
            self.repeats.add(former)
            del self.letters[former]
        if len(self.letters) >= WAITING_MAX:
            self.uncounted += 1
            return
        self.newest[identity] = found.number
        keys = tuple(hash(key) for key in found.letter.bundle_keys)
        self.letters[found.number] = _Waiting(found.written_ms, identity, False, keys)
        self._decide(found.number)

    def _drop_below(self, first: int) -> None:
        """What the topic holds no more waits no more."""
        for number in [number for number in self.letters if number < first]:
            self.newest.pop(self.letters.pop(number).identity, None)
        gone = {number for number in self.repeats if number < first}
        self.repeats -= gone
        self.repeated += sum(self.verdicts.of(number, 0) is None for number in gone)

    def _summary(self, extent: Extent, now_ms: int) -> DeadLetterSummary:
        waiting = self.letters.values()
        oldest_ms = min((one.written_ms for one in waiting), default=None)
        kept_ms = self.retention.kept_ms
        expires = oldest_ms is not None and kept_ms is not None
        bundles = Counter(key for one in waiting for key in one.keys)
        return DeadLetterSummary(
            name=self.box.name,
            waiting=len(waiting) + self.uncounted,
            failed=sum(one.failed for one in waiting),
            bundles=len(bundles),
            unplaced=sum(not one.keys for one in waiting),
            oldest_at_ms=oldest_ms,
            oldest_age_s=None if oldest_ms is None else max(0.0, (now_ms - oldest_ms) / 1000),
            expiry_s=max(0.0, ((oldest_ms or 0) + (kept_ms or 0) - now_ms) / 1000) if expires else None,
            expired=max(0, extent.first - self.verdicts.closed_below(extent.first) - self.repeated),
            kept_ms=kept_ms,
            kept_bytes=self.retention.kept_bytes,
            retention_known=self.retention.known,
        )
