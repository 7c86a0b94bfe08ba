"""Traces: nothing without the environment's wish, one trace for one change's way, links between what goes together."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from connectors.observing import Observer, commit_time_us_of, is_update
from connectors.records import TableRecords
from connectors.source import Batch, SourceRecord
from pipeline.core import logging as logs
from pipeline.core import telemetry
from pipeline.core.errors import EnvironmentProblem
from pipeline.core.freshness import Freshness
from pipeline.core.telemetry import TRACED_MAX, Traces, is_sampled, traced, wanted_exporters
from pipeline.report import BatchReport, Times
from pipeline.streams.journey import IndexJourneys, Journeys, SpaceJourneys
from pipeline.streams.lanes import RecordBatch
from schemas.context import Serving
from schemas.headers import Headers, commit_time_header, trace_of
from schemas.mutation import Cell, Marker, Mutation, MutationSource, encode_heartbeat, encode_mutation
from schemas.record import Record
from tests.support.embedding_world import QuickClock
from tests.unit.test_freshness import shown

FOREIGN = (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", b"vendor=x"))
FOREIGN_TRACE = 0x0AF7651916CD43DD8448EB211C80319C


class Spans:
    """Spans as an SDK records them."""

    def __init__(self, opt_in: str = "") -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = Traces(provider.get_tracer("test"), opt_in)

    def taken(self) -> list[ReadableSpan]:
        found = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return found

    def by_name(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.taken()}


@pytest.fixture
def spans() -> Spans:
    return Spans()


def trace_id(headers: Headers) -> str:
    return dict(headers)["traceparent"].split(b"-")[1].decode()


def test_nothing_is_imported_unless_the_environment_asks() -> None:
    code = (
        "import os, sys; from pipeline.core import telemetry; import connectors.runtime, pipeline.streams.app;"
        "assert telemetry.configure('worker', os.environ) is None and telemetry.traces() is None; telemetry.flush();"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], env={"PATH": ""}, check=True)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "x"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h", "OTEL_SDK_DISABLED": "true"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_TRACES_EXPORTER": "none"}, []),
        (
            {"OTEL_TRACES_EXPORTER": "console, otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            ["console", "otlp_proto_grpc"],
        ),
    ],
)
def test_the_exporter_is_chosen_as_opentelemetry_specifies(environment: dict[str, str], wanted: Sequence[str]) -> None:
    assert list(wanted_exporters(environment)) == list(wanted)


def test_an_exporter_that_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(EnvironmentProblem, match=r"no exporter of traces is named zipkin; here there are .*console"):
        telemetry.configure("worker", {"OTEL_TRACES_EXPORTER": "zipkin"})
    grpc = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(EnvironmentProblem, match="pip install opentelemetry-exporter-otlp-proto-grpc"):
        telemetry.configure("worker", grpc)
    assert telemetry.traces() is None


@pytest.mark.parametrize(
    ("value", "sampled"),
    [(FOREIGN[0][1], True), (FOREIGN[0][1][:-1] + b"0", False), (b"", False), (b"00-1-2", False), (b"a-b-c-zz", False)],
)
def test_whether_a_trace_is_recorded(value: bytes, sampled: bool) -> None:
    assert is_sampled([("other", b"x"), ("traceparent", value)]) is sampled
    assert is_sampled([]) is False


def test_a_producer_that_samples_everything_does_not_make_every_record_spans() -> None:
    many = [Record("t", 0, number, b"k", b"v", 0, FOREIGN) for number in range(100)]
    assert len(traced(many)) == TRACED_MAX


def test_names_follow_the_conventions_that_are_opted_into() -> None:
    expected = {
        "": {"messaging.system", "messaging.kafka.offset"},
        "http,messaging": {"messaging.system.name", "kafka.offset"},
        "messaging/dup": {"messaging.system", "messaging.kafka.offset", "messaging.system.name", "kafka.offset"},
    }
    for opt_in, names in expected.items():
        spans = Spans(opt_in)
        spans.traces.begin("x", "consumer", (), {"system": "kafka", "offset": 5}).end()
        assert set(spans.taken()[0].attributes or {}) == names


# ---- the connector

TABLE = TableRecords("shop", "public.orders")


def batch_of(*records: SourceRecord) -> Batch:
    return Batch(list(records), None, 1, 0)


def written(number: int, time_us: int) -> SourceRecord:
    return TABLE.written({"id": number}, {"id": number, "note": '"ts_us":1,'}, (time_us, 0), time_us)[0]


def test_envelopes_tell_their_commit_time_and_whether_they_are_updates_unparsed() -> None:
    source = MutationSource("scylla", "fleet", "ks", "t")
    cells = Mutation(marker=Marker(42), cells={"v": Cell(42, {"ts_us": 1})})
    change = encode_mutation(source, {"id": 1}, cells, 7)[1]
    gone = TABLE.deleted({"id": 1}, (9, 9), 1_700_000_000_000_001)[0].value
    assert gone is not None and is_update(gone) and commit_time_us_of(gone) == 1_700_000_000_000_001
    assert is_update(change) and commit_time_us_of(change) == 42
    snapshot = MutationSource("scylla", "fleet", "ks", "t", snapshot=True)
    assert not is_update(encode_mutation(snapshot, {"id": 1}, cells, 7)[1])
    assert not is_update(encode_heartbeat(source, 5, 7)[1])
    row = TABLE.snapshot_row({"id": 1}, {"id": 1}, (1, 0), 5)[0].value
    assert row is not None and not is_update(row)
    assert not is_update(b"") and not is_update(b"{}") and commit_time_us_of(b'{"ts_us":null}') == 0


def test_a_connector_counts_live_changes_for_each_context_that_has_their_table() -> None:
    clock = QuickClock()
    both, one = (Freshness(name, Serving(max_age_ms=1000), ("captured", "in_kafka")) for name in ("obs_a", "obs_b"))
    observer = Observer("shop", clock, {TABLE.topic: [both, one], "shop.public.lines": [both]})
    old_us = clock.now_us() - 2_000_000
    lines = TableRecords("shop", "public.lines").written({"id": 1}, {"id": 1}, (1, 0), old_us)
    batch = batch_of(
        TABLE.snapshot_row({"id": 9}, {"id": 9}, (1, 0), 5)[0],
        *lines,
        written(1, old_us),
        *TABLE.deleted({"id": 2}, (2, 0), clock.now_us()),
        TABLE.heartbeat((3, 0), clock.now_us()),
    )
    observed = observer.captured(batch)
    assert observed.batch is batch, "without traces, nothing is copied"
    clock.elapsed_s += 1
    observed.delivered()
    assert {key: shown("obs_a", "captured")[key] for key in ("updates", "late", "sum")} == {
        "updates": 3, "late": 3, "sum": 6
    }  # fmt: skip
    assert (shown("obs_b", "in_kafka")["updates"], shown("obs_b", "in_kafka")["sum"]) == (2, 6)
    observer.captured(batch_of(batch.records[0], batch.records[-1])).delivered()
    assert shown("obs_a", "captured")["updates"] == 3


def test_one_batch_in_n_begins_a_trace_with_its_first_change(spans: Spans) -> None:
    clock = QuickClock()
    observer = Observer("shop", clock, {}, spans.traces, 3)
    began_us = clock.now_us() - 500_000
    found = []
    for number in range(6):
        first = TABLE.snapshot_row({"id": 0}, {"id": 0}, (1, 0), 5)[0]
        observed = observer.captured(batch_of(first, written(number, began_us), written(100, began_us)))
        clock.elapsed_s += 0.25
        observed.delivered()
        found.append([bool(trace_of(record.headers)) for record in observed.batch.records])
    assert found == [[False, True, False], *[[False] * 3] * 2] * 2
    capture, publish, *_ = spans.taken()
    assert capture.start_time == began_us * 1000 and capture.parent is None and capture.context is not None
    assert publish.parent == capture.context and publish.kind.name == "PRODUCER"
    assert publish.end_time is not None and publish.start_time is not None
    assert publish.end_time - publish.start_time == 250_000_000
    assert (publish.attributes or {})["messaging.operation.type"] == "send"


def test_a_trace_that_a_record_brings_along_goes_on(spans: Spans) -> None:
    observer = Observer("shop", QuickClock(), {}, spans.traces, 0)
    mine = SourceRecord(TABLE.topic, b"k", written(2, 5).value, (("other", b"x"), *FOREIGN))
    observed = observer.captured(batch_of(written(1, 5), mine))
    observed.delivered()
    headers = observed.batch.records[1].headers
    assert trace_id(headers) == f"{FOREIGN_TRACE:032x}" and headers[0] == ("other", b"x") and len(headers) == 3
    assert ("tracestate", b"vendor=x") in headers and headers[1:] != FOREIGN
    assert {span.context.trace_id for span in spans.taken() if span.context} == {FOREIGN_TRACE}


# ---- workers, embedders, replicas


def record(offset: int, headers: Headers = (), topic: str = "shop.public.orders", key: bytes = b"k") -> Record:
    return Record(topic, 3, offset, key, b"v", 0, tuple(headers))


def batch(*records: Record) -> RecordBatch:
    return RecordBatch((records[0].topic, 3), list(records), records[-1].offset + 1, lambda batch: None)


def journeys(spans: Spans) -> Journeys:
    clock = QuickClock()
    return Journeys("flights", clock, None, spans.traces, lambda record: (record.key or b"").decode(), "ctxpipe.f.v1")


def report(events: int, *keys: str) -> BatchReport:
    now_us = QuickClock().now_us()
    times = Times(applied=now_us + 10, assembled=now_us + 20, stored=now_us + 30)
    return BatchReport(events=events, bundles_written=1, texts_wanted=dict.fromkeys(keys), times=times)


def test_a_single_change_is_followed_through_its_stages_and_on(spans: Spans) -> None:
    done = report(1, *map(str, range(100)))
    with journeys(spans).of([batch(record(7, FOREIGN))]) as journey:
        journey.stored(done)
    found = spans.by_name()
    assert list(found) == ["apply", "assemble", "put", "process shop.public.orders"]
    process = found["process shop.public.orders"]
    assert {span.context.trace_id for span in found.values() if span.context} == {FOREIGN_TRACE}
    assert [found[name].parent for name in ("apply", "assemble", "put")] == [process.context] * 3
    assert (process.attributes or {}).items() >= {
        "messaging.destination.name": "shop.public.orders",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 7,
        "messaging.consumer.group.name": "ctxpipe.f.v1",
        "ctxpipe.context": "flights",
    }.items()
    assert not any("key" in name for span in found.values() for name in span.attributes or {})
    assert trace_id(done.trace) == f"{FOREIGN_TRACE:032x}" and len(done.traces) == 16


def test_of_many_changes_each_traced_one_has_its_trace_and_links_to_the_others(spans: Spans) -> None:
    other = (("traceparent", b"00-000000000000000000000000000000aa-00000000000000bb-01"),)
    done = report(3, "a", "b")
    with journeys(spans).of([batch(record(1, FOREIGN, key=b"a"), record(2), record(3, other, key=b"c"))]) as journey:
        journey.stored(done)
    processes = [span for span in spans.taken() if span.name.startswith("process")]
    assert {span.context.trace_id for span in processes if span.context} == {FOREIGN_TRACE, 0xAA}
    for span in processes:
        assert [link.context.trace_id for link in span.links] == [FOREIGN_TRACE, 0xAA]
    # Which text is whose is known of rows of the root entity only: that of "c" is not asked for here.
    assert done.trace == () and {key: trace_id(one) for key, one in done.traces.items()} == {
        "a": f"{FOREIGN_TRACE:032x}"
    }


def test_a_batch_that_fails_says_so_in_its_trace(spans: Spans) -> None:
    with pytest.raises(KeyError), journeys(spans).of([batch(record(1, FOREIGN))]):
        raise KeyError("secret key")
    (process,) = spans.taken()
    assert process.status.description == "KeyError", "never what an exception holds"


def test_from_the_text_to_the_index_it_is_one_trace(spans: Spans) -> None:
    clock = QuickClock()
    freshness = Freshness("on_the_way", Serving(max_age_ms=100), ("embedded", "in_faiss"))
    embedders = SpaceJourneys("on_the_way", "s", clock, freshness, spans.traces)
    embedders.live = True
    waited = commit_time_header(clock.now_us() - 3_000_000)
    texts = {"a": record(1, (waited, *FOREIGN), "texts"), "b": record(2, (waited,), "texts"), "c": record(3)}
    with embedders.embedding(texts) as embedding:
        headers = embedding.headers()
        embedding.sent(["a", "c"])
    assert set(headers) == {"a", "b"} and trace_id(headers["a"]) == f"{FOREIGN_TRACE:032x}"
    assert (shown("on_the_way", "embedded")["updates"], shown("on_the_way", "embedded")["late"]) == (1, 1)
    vectors = [record(4, headers["a"], "vectors"), record(5, headers["b"], "vectors"), record(6)]
    with IndexJourneys("on_the_way", "s", clock, freshness, spans.traces).indexing(vectors):
        clock.elapsed_s += 1
    assert (shown("on_the_way", "in_faiss")["updates"], shown("on_the_way", "in_faiss")["sum"]) == (2, 8)
    found = spans.by_name()
    assert found["index"].parent is not None and found["embed"].context is not None
    assert found["index"].parent.span_id == found["embed"].context.span_id
    embedders.live = False
    with embedders.embedding(texts) as embedding:
        embedding.sent(["a"])
    assert shown("on_the_way", "embedded")["updates"] == 1, "a candidate's vectors are waited for by nobody"


# ---- log lines


@pytest.fixture
def lines() -> Iterator[Any]:
    root = logging.getLogger()
    handlers, level, stream = root.handlers[:], root.level, io.StringIO()
    logs.configure(stream=stream, role="worker")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines_inside_a_batch_carry_the_ids_of_its_trace(spans: Spans, lines: Any) -> None:
    log = logging.getLogger("test")
    with logs.log_fields(topic="t", partition=3), journeys(spans).of([batch(record(1, FOREIGN))]):
        log.warning("inside", extra={"partition": 4})
    log.warning("outside")
    inside, outside = lines()
    (process,) = spans.taken()
    assert process.context is not None
    assert inside.items() >= {
        "role": "worker", "context": "flights", "topic": "t", "partition": 4,
        "trace_id": f"{FOREIGN_TRACE:032x}", "span_id": f"{process.context.span_id:016x}",
    }.items()  # fmt: skip
    assert outside["role"] == "worker" and not {"context", "topic", "trace_id"} & set(outside)


class Refusing:
    """An exporter whose receiver is away."""

    def __init__(self) -> None:
        self.answers = [SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self.answers.pop(0)

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def test_a_receiver_that_is_away_is_told_once_and_disturbs_nothing(lines: Any) -> None:
    exporter: Any = telemetry.Telling(Refusing())
    assert [exporter.export([]).name for _ in range(3)] == ["FAILURE", "FAILURE", "SUCCESS"]
    logging.getLogger("opentelemetry.exporter.otlp").warning("Transient error")
    (line,) = lines()
    assert "nothing else is affected" in line["message"]
