"""Up to where changes of the sources are in a context's bundles: read for all lookups together, also for those that
wait until a position has been reached (read your writes)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pipeline.core.errors import CtxpipeError
from pipeline.stores.store import AppliedPosition, BundleReader, Partition
from schemas.bundle import Meta
from schemas.event import version_of
from schemas.position import PositionKind, SourcePosition, lsn_text, token_of
from schemas.topics import table_topic

POLL_S = 0.004
"""Between two readings while somebody waits, however many do."""
AWAY_PAUSE_S = 0.05
CLOCKS_DIFFER_US = 1_000_000
"""Write times are told by other clocks than heartbeats, and a write takes its time until it is in the log."""

Applied = Mapping[Partition, AppliedPosition]
NOTHING: Applied = {}
_NOT_COVERED: tuple[PositionKind | None, int] = (None, -1)


class Reached(msgspec.Struct, frozen=True):
    """Of one source: all that was committed before `before` is in every bundle. None while nobody knows."""

    kind: PositionKind | None = None
    before: int | None = None
    clusters: frozenset[str] = frozenset()

    def passed(self, position: SourcePosition) -> bool:
        """Strictly: a log position says that what lies before it is there, not what begins at it."""
        if self.before is None or self.kind != position.kind:
            return False
        if position.cluster and self.clusters - {position.cluster}:
            return False
        return self.before > position.value + (CLOCKS_DIFFER_US if self.kind == "time" else 0)

    def newest(self) -> int | None:
        """The greatest value that is passed."""
        if self.before is None:
            return None
        return max(0, self.before - 1 - (CLOCKS_DIFFER_US if self.kind == "time" else 0))


UNKNOWN = Reached()

Covered = Mapping[str, tuple[PositionKind | None, int]]


class Seen(msgspec.Struct, frozen=True):
    """What one reading of applied positions says of all bundles that were read after it.

    `as_of_us`, by source: up to when everything that it committed is in the bundles, microseconds since 1970 UTC; None,
    or not there, when nobody knows. `covered`: the kind of its positions and the greatest that has been reached.
    """

    as_of_us: Mapping[str, int | None] = {}
    covered: Covered = {}
    clusters: Mapping[str, frozenset[str]] = {}
    covered_versions: Mapping[str, str] = {}
    """The beginning of versions: those of log positions below it are covered."""
    covering: Mapping[str, str] = {}
    """`tokens` without newer bundles."""

    def tokens(self, metas: Iterable[Meta] = ()) -> dict[str, str]:
        """Per source a position that covers all of what an answer with these bundles and fragments has seen."""
        newer: dict[str, int] = {}
        for meta in metas:
            for source, state in meta.sources.items():
                if state.version < self.covered_versions.get(source, ""):
                    continue  # most bundles are older than what has been read of their sources
                kind, covered = self.covered.get(source, _NOT_COVERED)
                value = state.commit_time_us if kind == "time" else int(state.version[:16] or "0", 16)
                if kind is not None and value > newer.get(source, covered):
                    newer[source] = value
        if not newer:
            return dict(self.covering)
        return {**self.covering, **{source: self.token(source, value) for source, value in newer.items()}}

    def token(self, source: str, value: int) -> str:
        """Of a source whose kind is known."""
        kind = self.covered[source][0]
        assert kind is not None
        return token_of(SourcePosition(source, kind, value, _only(self.clusters.get(source, frozenset()))))


NOTHING_SEEN = Seen()


class AppliedWatch:
    """Of one context version; used in one event loop. `sources` are topic → source, of every table that it reads.

    `settled` are the newest positions whose changes are all in the bundles: the dirty lane has rebuilt what they led
    to. `known` are the newest at all. `seen` is what they say of bundles that are read from now on.
    """

    def __init__(self, reader: BundleReader, sources: Mapping[str, str], dirty: str) -> None:
        self._reader, self._topics, self._dirty = reader, dict(sources), dirty
        self.known: Applied = NOTHING
        self.settled: Applied = NOTHING
        self._unsettled: Applied | None = None
        self._begun = self._observed = 0
        self._reached: dict[str, Reached] = {}
        self.seen = NOTHING_SEEN
        self._waiting: dict[asyncio.Future[None], Sequence[SourcePosition]] = {}
        self._polling: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Raises Retryable. Of readings side by side the one that began last counts."""
        began = self.begin()
        self.observe(began, await self._reader.read_applied())

    def begin(self) -> int:
        """Call it before positions are read elsewhere, for `observe`."""
        self._begun += 1
        return self._begun

    def observe(self, began: int, positions: Applied) -> None:
        """Takes positions that were read after `begin` gave this number, unless a later reading is known."""
        if began > self._observed:
            self._observed = began
            self._observe(positions)

    def reached(self, source: str) -> Reached:
        return self._reached.get(source, UNKNOWN)

    def clusters(self, source: str) -> frozenset[str]:
        """The servers that changes of the source were last read from."""
        return frozenset(one.cluster for one in self.known.values() if one.source == source and one.cluster)

    def kind(self, source: str) -> PositionKind | None:
        """What its positions are, as soon as one is known."""
        return self.seen.covered.get(source, _NOT_COVERED)[0]

    def missing(self, wanted: Iterable[SourcePosition]) -> list[SourcePosition]:
        """Those that have not been reached."""
        return [position for position in wanted if not self.reached(position.source).passed(position)]

    async def until(self, wanted: Sequence[SourcePosition], limit_s: float) -> None:
        """Returns when all have been reached, or after the limit."""
        if not self.missing(wanted):
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[done] = wanted
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(), name="applied-watch")
        try:
            await asyncio.wait((done,), timeout=limit_s)
        finally:
            del self._waiting[done]

    async def _poll(self) -> None:
        while self._waiting:
            pause_s = POLL_S
            try:
                await self.read()
            except CtxpipeError:
                pause_s = AWAY_PAUSE_S  # whoever waits has a limit, and is told then
            await asyncio.sleep(pause_s)

    def _observe(self, positions: Applied) -> None:
        if any(_offset(positions, place) < one.offset for place, one in self.known.items()):
            # The store lost what it had, or a partition is read again: nothing of before is taken for granted.
            self.settled, self._unsettled = NOTHING, None
        self.known = positions
        if self._rebuilt(positions, positions):
            self.settled, self._unsettled = positions, None
        elif self._unsettled is None:
            self._unsettled = positions
        elif self._rebuilt(self._unsettled, positions):
            self.settled, self._unsettled = self._unsettled, positions
        self._reached = self._all_reached()
        covered = self._all_covered()
        clusters = {source: self.clusters(source) for source in covered}
        seen = Seen(self._all_times(), covered, clusters)
        tokens = {source: seen.token(source, value) for source, (_, value) in covered.items() if value >= 0}
        logs = {source: value for source, (kind, value) in covered.items() if kind == "lsn" and value >= 0}
        versions = {source: f"{value:016x}" for source, value in logs.items()}
        self.seen = msgspec.structs.replace(seen, covering=tokens, covered_versions=versions)
        for done, wanted in self._waiting.items():
            if not done.done() and not self.missing(wanted):
                done.set_result(None)

    def _rebuilt(self, then: Applied, now: Applied) -> bool:
        """Whether what led to `then` is in the bundles, as the dirty lane stands now."""
        ends: dict[int, int] = {}
        for one in then.values():
            for number, end in one.awaits.items():
                ends[number] = max(end, ends.get(number, 0))
        return all(_offset(now, (self._dirty, number)) >= end for number, end in ends.items())

    def _all_reached(self) -> dict[str, Reached]:
        sources = {**self._topics, **{topic: one.source for (topic, _), one in self.settled.items() if one.source}}
        found: dict[str, list[AppliedPosition]] = {}
        unread = set(sources)
        for (topic, _), one in self.settled.items():
            if topic in sources:
                unread.discard(topic)
                found.setdefault(sources[topic], []).append(one)
        unknown = {sources[topic] for topic in unread}
        return {source: UNKNOWN if source in unknown else _together(positions) for source, positions in found.items()}

    def _all_times(self) -> dict[str, int | None]:
        """A partition that has seen nothing that tells a time makes its source unknown."""
        times: dict[str, int] = {}
        for one in self.settled.values():
            if one.source:
                times[one.source] = min(one.commit_time_us, times.get(one.source, one.commit_time_us))
        return {source: time_us or None for source, time_us in times.items()}

    def _all_covered(self) -> dict[str, tuple[PositionKind | None, int]]:
        """Per source, the kind of its positions and the greatest that has been reached; -1 while that is not known."""
        covered: dict[str, tuple[PositionKind | None, int]] = {}
        for one in self.known.values():
            if one.source and one.version and one.source not in covered:
                newest = self.reached(one.source).newest()
                covered[one.source] = (_kind(one.version, one.commit_time_us), -1 if newest is None else newest)
        return covered


def topics_of(sources: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Topic → source of (source, table), where the configuration says nothing else."""
    return {table_topic(source, table): source for source, table in sources}


def reason_of(position: SourcePosition, reached: Reached) -> str:
    """Why an answer does not hold what was asked for, a sentence for callers."""
    value = reached.newest()
    if value is None:
        return f"nobody knows yet up to where changes of {position.source} have been applied"
    if position.cluster and reached.clusters - {position.cluster}:
        return f"not all changes of {position.source} come from the position's server yet"
    if position.kind == "lsn":
        return f"changes of {position.source} are in up to {lsn_text(value)}, not yet {lsn_text(position.value)}"
    late_ms = (position.value - value) / 1000
    return f"changes of {position.source} are in up to {late_ms:.0f} ms before the position"


def _together(positions: Sequence[AppliedPosition]) -> Reached:
    clusters = frozenset(one.cluster for one in positions if one.cluster)
    if not all(one.version for one in positions):
        return Reached(clusters=clusters)
    kinds = {_kind(one.version, one.commit_time_us) for one in positions}
    if len(kinds) > 1:
        return Reached(clusters=clusters)
    return Reached(kinds.pop(), min(_major(one.version) for one in positions), clusters)


def _kind(version: str, commit_time_us: int) -> PositionKind:
    """Versions of Cassandra and Scylla are the time of the write, nothing else."""
    return "time" if version == version_of(max(commit_time_us, 0), 0) else "lsn"


def _major(version: str) -> int:
    return int(version[:16], 16)


def _only(clusters: frozenset[str]) -> str:
    return next(iter(clusters)) if len(clusters) == 1 else ""


def _offset(positions: Applied, place: Partition) -> int:
    one = positions.get(place)
    return 0 if one is None else one.offset
