"""Beside the path: what a source's server tells of it to somebody who only looks, so that a slot which is about to be
lost, a full cdc_raw or a log that expires is seen while its connector is down, which is when it matters.

    watches = open_watches(sources, kafka)
    health = await look(name, watches[name])    # or watch.look(), which raises Retryable
    publish(health)

Nothing is changed by looking, and reading rights are enough (connectors/README.md says which).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from connectors.publisher import KafkaSettings
from connectors.source import Finding, Source, StoredPosition, Watched
from connectors.stored import NewestPositions
from pipeline.core import metrics
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import CtxpipeError, Retryable

if TYPE_CHECKING:
    from connectors.registry import Configured

LOOK_TIMEOUT_S = 12.0
"""All of a look, a second connection included."""
CLOSE_TIMEOUT_S = 2.0
LEFT_S = 30.0
"""So long without its connector a source may be because that is just started anew; then something is wrong."""
SEVERITIES = ("ok", "note", "warning", "unfit")
"""Of findings, the worst last."""


class NodeHealth(msgspec.Struct, frozen=True):
    """The change log of one node of Cassandra, in bytes. `segments` are those that wait to be read."""

    node: str
    cdc_raw_bytes: int
    cdc_raw_limit_bytes: int
    segments: int = 0


class SourceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What a look found. None: unknown, or nothing that this kind of source has. Times are Unix seconds.

    `up`: the source answered; None where there is no server to look at. `findings`: in words, the worst first, with
    what mends them. `floor_s`: no change comes sooner. `headroom_s`: until the source drops log that we have not read
    (of Cassandra: until it refuses writes), as things went in the last minutes; 0: it has done so, None: not known, or
    it does not come nearer. `unread_s`: age up to which the log has been read and that is stored.
    """

    source: str
    connector: str = ""
    up: bool | None = None
    looked_at_s: float | None = None
    findings: tuple[Finding, ...] = ()
    floor_s: float | None = None
    headroom_s: float | None = None
    unread_s: float | None = None
    # Postgres
    slot: str | None = None
    wal_status: str | None = None
    """As Postgres says it, or `missing`."""
    slot_active: bool | None = None
    inactive_since_s: float | None = None
    invalidation_reason: str | None = None
    retained_bytes: int | None = None
    unconfirmed_bytes: int | None = None
    safe_wal_bytes: int | None = None
    # Cassandra
    nodes: tuple[NodeHealth, ...] = ()
    sidecar_healthy: bool | None = None
    # Scylla
    generation_s: float | None = None
    log_ttl_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is unknown is null."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @property
    def severity(self) -> str:
        """Of the worst finding."""
        return max((one.severity for one in self.findings), key=SEVERITIES.index, default="ok")


class Watching(Protocol):
    """Looks at one source. `look` is never called twice at once; it connects when it has to, and again after an error.

    Those of `open_watches` answer within LOOK_TIMEOUT_S and raise nothing but Retryable.
    """

    async def look(self) -> SourceHealth:
        """Asks the server. Raises Retryable when it is away or refuses."""

    async def close(self) -> None:
        """Gives up connections; the next `look` would connect again."""


def open_watches(
    sources: Sequence[Configured], kafka: KafkaSettings | None = None, clock: Clock | None = None
) -> dict[str, Watching]:
    """By the source's name; nothing is connected yet. Without `kafka` nobody knows how far a source has been read,
    where only the position tells. Close each of them in the end.
    """
    clock = clock or SystemClock()
    return {configured.name: _watch(configured, kafka, clock) for configured in sources}


async def look(name: str, watch: Watching) -> SourceHealth:
    """As the watch says; where the source is away, that, and none of what was known of it before."""
    try:
        return await watch.look()
    except Retryable as error:
        return away(name, error)


def away(name: str, error: CtxpipeError) -> SourceHealth:
    """The source did not answer."""
    return SourceHealth(source=name, up=False, findings=(Finding("unfit", "away", str(error)),))


def publish(health: SourceHealth) -> None:
    """Sets the gauges ctxpipe_source_* of this source; what is not known any more is no longer there."""
    name = health.source
    status = health.wal_status
    _show(metrics.source_up, health.up, {"source": name})
    _show(metrics.source_retained_bytes, health.retained_bytes, {"source": name})
    _show(metrics.source_unconfirmed_bytes, health.unconfirmed_bytes, {"source": name})
    _show(metrics.source_safe_bytes, health.safe_wal_bytes, {"source": name})
    _show(metrics.source_slot_active, health.slot_active, {"source": name})
    _show(metrics.source_generation_seconds, health.generation_s, {"source": name})
    _show(metrics.source_floor_seconds, health.floor_s, {"source": name})
    _show(metrics.source_headroom_seconds, health.headroom_s, {"source": name})
    _show_all(metrics.source_wal_status, name, "status", {status: 1} if status is not None else {})
    _show_all(metrics.source_raw_bytes, name, "node", {one.node: one.cdc_raw_bytes for one in health.nodes})
    _show_all(metrics.source_raw_limit_bytes, name, "node", {one.node: one.cdc_raw_limit_bytes for one in health.nodes})


def forget(name: str) -> None:
    """The source is no longer looked at: its gauges vanish."""
    publish(SourceHealth(source=name))


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda one: -SEVERITIES.index(one.severity)))


class Pace:
    """How fast a log grows, over the last minutes of looks. Pure; `time_s` never goes back."""

    def __init__(self, window_s: float = 600.0, least_s: float = 5.0) -> None:
        self._seen = _Window(window_s)
        self._least_s = least_s

    def note(self, time_s: float, end: float) -> None:
        """An end that is before the last one is another server's, and all is begun anew."""
        if self._seen.values and end < self._seen.values[-1][1]:
            self._seen.values.clear()
        self._seen.note(time_s, end)

    def seconds_for(self, amount: float) -> float | None:
        """Until it has grown by that much; None when it does not grow, or has not been watched for long enough."""
        if not self._seen.values:
            return None
        (first_s, first), (last_s, last) = self._seen.values[0], self._seen.values[-1]
        if last_s - first_s < self._least_s or last <= first:
            return None
        return max(amount, 0.0) * (last_s - first_s) / (last - first)


class Ebb:
    """How long room lasts that is taken and given back in turns: the most of it in the older and in the newer half of
    the last minutes of looks. Pure; `time_s` never goes back."""

    def __init__(self, window_s: float = 600.0, least_s: float = 60.0) -> None:
        self._seen = _Window(window_s)
        self._least_s = least_s

    def note(self, time_s: float, room: float) -> None:
        self._seen.note(time_s, room)

    def seconds(self) -> float | None:
        """Until none is left; None when it does not shrink by a hundredth, or has not been watched for long enough."""
        values = self._seen.values
        if not values or values[-1][0] - values[0][0] < self._least_s:
            return None
        middle_s = (values[0][0] + values[-1][0]) / 2
        older = max((one for one in values if one[0] <= middle_s), key=lambda one: one[1])
        newer = max((one for one in values if one[0] > middle_s), key=lambda one: one[1])
        lost = older[1] - newer[1]
        if lost <= older[1] / 100:
            return None
        return max(values[-1][1], 0.0) * (newer[0] - older[0]) / lost


class _Window:
    """(time, value) of the last `window_s`."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self.values: deque[tuple[float, float]] = deque(maxlen=1024)

    def note(self, time_s: float, value: float) -> None:
        self.values.append((time_s, value))
        while time_s - self.values[0][0] > self._window_s:
            self.values.popleft()


def _watch(configured: Configured, kafka: KafkaSettings | None, clock: Clock) -> Watching:
    source: Source | None = configured.source() if configured.plugin.source is not None else None
    if isinstance(source, Watched):
        return _Bounded(configured, source, kafka, clock)
    return _Nothing(configured, clock)


class _Nothing:
    """Of a source without a server that could be asked."""

    def __init__(self, configured: Configured, clock: Clock) -> None:
        self._configured = configured
        self._clock = clock

    async def look(self) -> SourceHealth:
        plugin = self._configured.plugin
        why = f"the connector {plugin.name} has no server that could be asked"
        if plugin.source is None:
            why = "others fill its topics, and watch its database where they run"
        return SourceHealth(
            source=self._configured.name,
            connector=plugin.name,
            looked_at_s=self._clock.now_us() / 1_000_000,
            findings=(Finding("note", "nothing to look at", why),),
        )

    async def close(self) -> None:
        """Nothing is open."""


class _Broken(CtxpipeError):
    """A look failed; whether a new connection mends that is to be tried."""


class _Bounded:
    """A watch that answers in time, says only Retryable, and connects anew after it."""

    def __init__(self, configured: Configured, source: Watched, kafka: KafkaSettings | None, clock: Clock) -> None:
        self._name = configured.name
        self._clock = clock
        self._positions = NewestPositions(kafka) if kafka is not None else None
        stored: StoredPosition | None = self._positions.newest if self._positions is not None else None
        self._watch: Watching = source.watch(stored, clock)
        self._connected = False

    async def look(self) -> SourceHealth:
        """Servers end connections that idle: away is only who does not answer a new one."""
        until_s = asyncio.get_running_loop().time() + LOOK_TIMEOUT_S
        if self._connected:
            with suppress(_Broken):
                return await self._look(until_s)
        try:
            return await self._look(until_s)
        except _Broken as error:
            raise Retryable(str(error)) from error

    async def _look(self, until_s: float) -> SourceHealth:
        """Raises _Broken for what the source says, Retryable when it says nothing until then."""
        looking = asyncio.create_task(self._watch.look(), name=f"look-{self._name}")
        self._connected = False
        try:
            done, _ = await asyncio.wait([looking], timeout=max(until_s - asyncio.get_running_loop().time(), 0))
            if not done:
                raise Retryable(f"{self._name}: the source did not answer within {LOOK_TIMEOUT_S:g} s.")
            try:
                health = looking.result()
            except CtxpipeError as error:
                raise _Broken(str(error)) from error
        except (CtxpipeError, asyncio.CancelledError):
            await self._give_up(looking)
            raise
        self._connected = True
        return msgspec.structs.replace(health, looked_at_s=self._clock.now_us() / 1_000_000)

    async def close(self) -> None:
        await self._watch.close()
        if self._positions is not None:
            await self._positions.close()

    async def _give_up(self, looking: asyncio.Task[SourceHealth]) -> None:
        """The connection goes first: a driver that is cancelled may wait for a server that says nothing."""
        with suppress(TimeoutError, CtxpipeError):
            await asyncio.wait_for(self._watch.close(), CLOSE_TIMEOUT_S)
        looking.cancel()
        looking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody asks it any more
        await asyncio.wait([looking], timeout=CLOSE_TIMEOUT_S)


def _show(gauge: Any, value: float | None, labels: Mapping[str, str]) -> None:
    if value is None:
        gauge.remove_by_labels(labels)
    else:
        gauge.labels(**labels).set(value)


def _show_all(gauge: Any, source: str, label: str, values: Mapping[str, float]) -> None:
    """Those that are gone are taken away after the others are there: a scrape in between finds no gap."""
    for one, value in values.items():
        gauge.labels(**{"source": source, label: one}).set(value)
    for metric in gauge.collect():
        for sample in metric.samples:
            if sample.labels["source"] == source and sample.labels[label] not in values:
                gauge.remove_by_labels(sample.labels)
