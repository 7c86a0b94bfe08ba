"""Spans and metrics of calls to models, as an SDK records them: where they hang, what they say, what they never do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pipeline.core import genai_names as names
from pipeline.core import telemetry
from pipeline.core.errors import EnvironmentProblem
from pipeline.core.telemetry import ModelCalls, wanted_metric_exporters
from tests.support.guard_script import BEGAN_US, VALID, World, answers, fails, says


class Recorded:
    """A tracer, a meter, and what they got."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        self.calls = ModelCalls(self.tracer, MeterProvider([self.reader]).get_meter("test"))

    def spans(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans() if span.name == name]

    def points(self, name: str) -> list[Any]:
        found = self.reader.get_metrics_data()
        metrics = [one for part in found.resource_metrics for scope in part.scope_metrics for one in scope.metrics]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    found = Recorded()
    monkeypatch.setattr(telemetry, "_models", found.calls)
    yield found


async def test_a_call_is_a_span_with_one_for_each_endpoint_that_was_asked(recorded: Recorded) -> None:
    world = World(
        primary=[fails("reset")], other=[answers(429)], local=[says(VALID)], route={"retries_max": 1}, endpoint={}
    )
    with recorded.tracer.start_as_current_span("the application's own") as own:
        result = await world.call()
    assert result.rung == "local"
    (call,) = recorded.named("guard t")
    assert call.parent is not None and call.parent.span_id == own.get_span_context().span_id
    asked = [span for span in recorded.spans() if span.name.startswith("chat ")]
    assert [(span.name, (span.attributes or {}).get("error.type")) for span in asked] == [
        ("chat m", "reset"), ("chat m", "reset"), ("chat m", "rate_limited"), ("chat scripted", None),
    ]  # fmt: skip
    assert {span.parent.span_id for span in asked if span.parent} == {call.context.span_id}
    assert {span.kind for span in asked} == {SpanKind.CLIENT}
    assert [span.status.status_code for span in asked] == [StatusCode.ERROR] * 3 + [StatusCode.UNSET]
    told = dict(call.attributes or {})
    assert (told[names.RUNG], told[names.REASON], told[names.ASKED], told[names.PASSED_OVER]) == (
        "local",
        "reset",
        4,
        0,
    )
    first = asked[0]
    assert first.start_time is not None and first.end_time is not None
    assert first.start_time >= BEGAN_US * 1000 and first.end_time - first.start_time == 10_000_000, (
        "10 ms, by the clock"
    )


async def test_who_was_passed_over_has_no_span_of_its_own(recorded: Recorded) -> None:
    world = World(functions={"t": lambda request: {"answer": 0}}, primary=[fails("reset")], route={"retries_max": 0})
    for _ in range(4):
        await world.call()
    assert len(recorded.named("chat m")) == 3
    last = dict(recorded.named("guard t")[-1].attributes or {})
    assert (last[names.RUNG], last[names.REASON], last[names.ASKED]) == ("deterministic", "breaker_open", 1)


async def test_metrics_have_the_names_and_bounds_of_the_conventions(recorded: Recorded) -> None:
    world = World(primary=[says("no idea"), says(VALID)])
    await world.call()
    points = recorded.points("gen_ai.client.operation.duration")
    assert {point.attributes.get("error.type"): point.count for point in points} == {"invalid_output": 1, None: 1}
    assert tuple(points[0].explicit_bounds) == names.DURATION_S
    assert points[0].attributes["gen_ai.operation.name"] == "chat"
    tokens = {point.attributes["gen_ai.token.type"]: point for point in recorded.points("gen_ai.client.token.usage")
              if "error.type" not in point.attributes}  # fmt: skip
    assert (tokens["input"].sum, tokens["output"].sum) == (12, 5)
    assert tuple(tokens["input"].explicit_bounds) == names.TOKENS


async def test_nothing_of_what_was_asked_or_answered_is_in_them(recorded: Recorded) -> None:
    world = World(primary=[says("a secret answer"), says(VALID)])
    messages = [{"role": "user", "content": "a secret question"}]
    await world.call(messages=messages, data={"name": "a secret person"}, tenant="a secret tenant")
    told = json.dumps([[span.name, dict(span.attributes or {}), span.status.description] for span in recorded.spans()])
    assert "secret" not in told and len(recorded.spans()) == 3


async def test_a_caller_that_goes_away_leaves_a_span_that_ends(recorded: Recorded) -> None:
    world = World(primary=[says(VALID)])
    world.client.gates["primary"] = asyncio.Event()
    task = asyncio.create_task(world.guard.call(world.request()))
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [span.name for span in recorded.spans()] in (["guard t", "chat m"], ["chat m", "guard t"])


async def test_traces_alone_and_metrics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for tracer, meter in ((True, False), (False, True)):
        found = Recorded()
        calls = ModelCalls(found.calls._tracer if tracer else None, found.calls._meter if meter else None)
        monkeypatch.setattr(telemetry, "_models", calls)
        await World(primary=[says(VALID)]).call()
        assert bool(found.spans()) is tracer
        assert bool(found.reader.get_metrics_data() and found.points("gen_ai.client.token.usage")) is meter


def test_metrics_are_exported_only_where_they_are_asked_for() -> None:
    assert list(wanted_metric_exporters({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"})) == []
    own = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://h/v1/metrics"}
    assert wanted_metric_exporters(own) == ["otlp_proto_http"]
    assert wanted_metric_exporters({"OTEL_METRICS_EXPORTER": "console,otlp"}) == ["console", "otlp_proto_http"]
    assert wanted_metric_exporters({**own, "OTEL_SDK_DISABLED": "true"}) == ()
    with pytest.raises(EnvironmentProblem, match="no exporter of metrics is named statsd"):
        telemetry.configure("guard", {"OTEL_METRICS_EXPORTER": "statsd"})


def test_an_applications_own_sdk_is_taken_and_without_one_nothing_is_imported() -> None:
    """In processes of their own: what is set up is set up once."""
    nothing = (
        "import sys; from pipeline.core import telemetry; import pipeline.client.guarding;"
        "telemetry.configure_guest({}); assert telemetry.model_calls() is None;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", nothing], check=True, timeout=120)
    theirs = (
        "from opentelemetry import trace, metrics; from opentelemetry.sdk.trace import TracerProvider;"
        "from opentelemetry.sdk.metrics import MeterProvider;"
        "from pipeline.core import telemetry;"
        "telemetry.configure_guest({}); assert telemetry.model_calls() is None, 'the default provider is nobody';"
        "trace.set_tracer_provider(TracerProvider());"
        "telemetry.configure_guest({}); calls = telemetry.model_calls();"
        "assert calls._tracer is not None and calls._meter is None;"
        "telemetry.configure_guest({}); assert telemetry.model_calls() is calls"
    )
    subprocess.run([sys.executable, "-c", theirs], check=True, timeout=120)


def test_what_was_measured_is_exported_before_the_process_ends() -> None:
    """By the environment alone."""
    code = (
        "import asyncio, os; from pipeline.core import telemetry; telemetry.configure('guard', os.environ);"
        "from tests.support.guard_script import VALID, World, says;"
        "asyncio.run(World(primary=[says(VALID)]).call()); telemetry.flush()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "OTEL_METRICS_EXPORTER": "console"},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "gen_ai.client.operation.duration" in done.stdout and "gen_ai.client.token.usage" in done.stdout
