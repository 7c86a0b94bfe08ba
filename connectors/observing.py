"""What the runtime tells of each batch on its way to Kafka: freshness by context, and the beginning of traces.

A batch is told of as a whole, by the commit time of its first change, the oldest in it. Rows of snapshots and
heartbeats are no updates; what a source's contexts are, whoever starts the runtime says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter

from msgspec.structs import replace

from connectors.source import Batch, SourceRecord
from pipeline.core.clock import Clock
from pipeline.core.freshness import Freshness
from pipeline.core.telemetry import Attributes, Mark, Traces, is_sampled
from schemas.headers import Headers, trace_of

_OPERATION_AT = slice(-31, -25)
_OPERATION = b'"op":"'
"""Where it stands in most envelopes of ours: before `","ts_ms":<13 digits>}` and the operation itself."""
_LETTER_AT = -25
_CHANGES = frozenset(b"cud")
_SNAPSHOT = b'"snapshot":"'
_FALSE = ord("f")
_MESSAGE = b'"op":"m"'
_COMMIT_TIME = b'"ts_us":'
_DIGITS_MAX = 18
_topic = attrgetter("topic")


class Observer:
    """Of one source. `contexts`: topic → the contexts that its rows are in. Of `one_in` batches with changes one gets a
    trace, the first among them; 0: none, but for records that bring one along."""

    def __init__(
        self,
        source: str,
        clock: Clock,
        contexts: Mapping[str, Sequence[Freshness]],
        traces: Traces | None = None,
        one_in: int = 0,
    ) -> None:
        self._source, self._clock, self._contexts = source, clock, contexts
        self._traces, self._one_in = traces, one_in
        self._seen = 0

    def captured(self, batch: Batch) -> Observed:
        """A batch as it was read; publish that of the answer instead."""
        updates = [
            record
            for record in batch.records
            if record.partition is None
            and (value := record.value) is not None
            # Here once more, because a call costs as much as looking.
            and (value[_LETTER_AT] in _CHANGES if value[_OPERATION_AT] == _OPERATION else is_update(value))
        ]
        if not updates:
            return Observed(self, batch, ())
        commit_time_us = commit_time_us_of(updates[0].value or b"")
        told = self._told(Counter(map(_topic, updates)))
        now_us = self._clock.now_us()
        for freshness, count in told if commit_time_us else ():
            freshness.note_alike("captured", commit_time_us, count, now_us)
        observed = Observed(self, batch, told if commit_time_us else (), commit_time_us)
        if self._traces is not None:
            self._begin(self._traces, observed, updates[0], now_us)
        return observed

    def in_kafka(self, observed: Observed) -> None:
        now_us = self._clock.now_us()
        for freshness, count in observed.told:
            freshness.note_alike("in_kafka", observed.commit_time_us, count, now_us)
        if observed.publishing is not None:
            observed.publishing.end(now_us)

    def _told(self, counts: Mapping[str, int]) -> list[tuple[Freshness, int]]:
        found: dict[Freshness, int] = {}
        for topic, count in counts.items():
            for freshness in self._contexts.get(topic, ()):
                found[freshness] = found.get(freshness, 0) + count
        return list(found.items())

    def _begin(self, traces: Traces, observed: Observed, first: SourceRecord, now_us: int) -> None:
        """The first change of the batch is followed, or the first that brings a trace along."""
        brought = ((one, trace_of(one.headers)) for one in observed.batch.records if one.headers)
        record, parent = next(((one, trace) for one, trace in brought if is_sampled(trace)), (first, ()))
        self._seen += 1
        if not parent and (self._one_in == 0 or (self._seen - 1) % self._one_in):
            return
        began_us = min(observed.commit_time_us or now_us, now_us)
        about: Attributes = {"source": self._source, "topic": record.topic, "records": len(observed.batch.records)}
        capturing = traces.begin("capture", "internal", parent, about, at_us=began_us)
        capturing.end(now_us)
        sends = {"system": "kafka", "operation": "publish", "operation_type": "send"}
        observed.publishing = traces.begin(
            f"publish {record.topic}", "producer", capturing, {**about, **sends}, at_us=now_us
        )
        followed = _with_trace(record, observed.publishing.headers)
        records = [followed if one is record else one for one in observed.batch.records]
        observed.batch = replace(observed.batch, records=records)


class Observed:
    """A batch on its way. Call `delivered` when Kafka has it."""

    __slots__ = ("_observer", "batch", "commit_time_us", "publishing", "told")

    def __init__(
        self, observer: Observer, batch: Batch, told: Sequence[tuple[Freshness, int]], commit_time_us: int = 0
    ) -> None:
        self._observer = observer
        self.batch, self.told, self.commit_time_us = batch, told, commit_time_us
        self.publishing: Mark | None = None

    def delivered(self) -> None:
        if self.told or self.publishing is not None:
            self._observer.in_kafka(self)


def is_update(value: bytes) -> bool:
    """Whether an envelope of ours tells of a change, not of a row in a snapshot."""
    if value[_OPERATION_AT] == _OPERATION:
        return value[_LETTER_AT] in _CHANGES
    at = value.rfind(_SNAPSHOT)
    if at < 0 or value[at + len(_SNAPSHOT)] != _FALSE:
        return False
    return not value.startswith(_MESSAGE, 1) and _MESSAGE not in value[at:]


def commit_time_us_of(value: bytes) -> int:
    """The source's commit time in an envelope of ours, found without parsing it: a text in a row can't hold these
    quotes. 0 where there is none."""
    at = value.rfind(_COMMIT_TIME)
    if at < 0:
        return 0
    begin = at + len(_COMMIT_TIME)
    digits = value[begin : begin + _DIGITS_MAX].partition(b",")[0].partition(b"}")[0]
    return int(digits) if digits.isdigit() else 0


def _with_trace(record: SourceRecord, trace: Headers) -> SourceRecord:
    others = [(name, value) for name, value in record.headers if (name, value) not in trace_of(record.headers)]
    return replace(record, headers=(*others, *trace))
