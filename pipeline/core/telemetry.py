"""Traces of single changes by OpenTelemetry: capture, publish, process (apply, assemble, put), embed, index; and of
calls to models, with their metrics.

Nothing of OpenTelemetry is imported unless the environment asks for it, as its specification says: for traces by an
OTLP endpoint (OTEL_EXPORTER_OTLP_ENDPOINT) or an exporter (OTEL_TRACES_EXPORTER), for metrics, which Prometheus gets
anyway, by OTEL_METRICS_EXPORTER or an endpoint of their own. The context of a trace travels in Kafka's headers. Spans
say where (topic, partition, offset, context, space) and never which row: keys may be personal data.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pipeline.core.errors import EnvironmentProblem
from pipeline.core.logging import SparseLog
from schemas.headers import TRACEPARENT, Headers, trace_of

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, Meter
    from opentelemetry.trace import Span, Tracer

Kind = Literal["internal", "producer", "consumer"]
Attributes = Mapping[str, str | int]
"""By the names of NAMES."""
Values = Mapping[str, str | int | float]
"""By OpenTelemetry's own names."""

NAMES: Mapping[str, tuple[str, str]] = {
    "system": ("messaging.system", "messaging.system.name"),
    "operation": ("messaging.operation.name", "messaging.operation.name"),
    "operation_type": ("messaging.operation.type", "messaging.operation.type"),
    "topic": ("messaging.destination.name", "messaging.destination.name"),
    "partition": ("messaging.destination.partition.id", "messaging.destination.partition.id"),
    "group": ("messaging.consumer.group.name", "messaging.consumer.group.name"),
    "offset": ("messaging.kafka.offset", "kafka.offset"),
    "records": ("messaging.batch.message_count", "messaging.batch.message_count"),
    "source": ("ctxpipe.source", "ctxpipe.source"),
    "context": ("ctxpipe.context", "ctxpipe.context"),
    "space": ("ctxpipe.space", "ctxpipe.space"),
    "changes": ("ctxpipe.changes", "ctxpipe.changes"),
    "bundles": ("ctxpipe.bundles", "ctxpipe.bundles"),
}
"""Attribute → its name in the semantic conventions up to 1.44, and from 1.45 on: the messaging group is still being
stabilised. OTEL_SEMCONV_STABILITY_OPT_IN=messaging takes the new ones, messaging/dup both."""
NOTHING: Attributes = {}
TRACED_MAX = 8
"""Of one batch; a producer of somebody else's that samples everything must not turn each record into spans."""
FLUSH_S = 2.0
TELL_EVERY_S = 60.0
_EXPORTERS = {"traces": "opentelemetry_traces_exporter", "metrics": "opentelemetry_metrics_exporter"}
_SAMPLED = 0x01


class Mark:
    """A span that has begun. `headers` are for what follows from it, `fields` for log lines; `end` it."""

    __slots__ = ("fields", "headers", "span")

    def __init__(self, span: Span, headers: Headers) -> None:
        self.span, self.headers = span, headers
        context = span.get_span_context()
        self.fields = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def end(self, at_us: int | None = None, problem: str = "") -> None:
        if problem:
            from opentelemetry.trace import StatusCode

            self.span.set_status(StatusCode.ERROR, problem)
        self.span.end(None if at_us is None else at_us * 1000)


class Traces:
    """Begins spans. All times are microseconds since 1970 UTC; None is now."""

    def __init__(self, tracer: Tracer, opt_in: str = "") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, self._propagator = tracer, TraceContextTextMapPropagator()
        wanted = {word.strip() for word in opt_in.split(",")}
        self._columns = (0, 1) if "messaging/dup" in wanted else (1,) if "messaging" in wanted else (0,)

    def begin(
        self,
        name: str,
        kind: Kind = "internal",
        parent: Headers | Mark = (),
        attributes: Attributes = NOTHING,
        *,
        at_us: int | None = None,
        links: Iterable[Headers] = (),
    ) -> Mark:
        """A new trace without a `parent`, which is a span of this process or what came with a record."""
        from opentelemetry.trace import Link, SpanKind, get_current_span, set_span_in_context

        linked = [get_current_span(self._context(one)).get_span_context() for one in links]
        span = self._tracer.start_span(
            name,
            context=set_span_in_context(parent.span) if isinstance(parent, Mark) else self._context(parent),
            kind=SpanKind[kind.upper()],
            links=[Link(one) for one in linked if one.is_valid],
            start_time=None if at_us is None else at_us * 1000,
            attributes=self._named(attributes),
        )
        return Mark(span, self._headers(span))

    def step(self, name: str, parent: Mark, began_us: int, ended_us: int, attributes: Attributes = NOTHING) -> None:
        """A part of `parent` that is over."""
        self.begin(name, parent=parent, attributes=attributes, at_us=began_us).end(max(began_us, ended_us))

    def _named(self, attributes: Attributes) -> dict[str, str | int]:
        return {NAMES[name][column]: value for name, value in attributes.items() for column in self._columns}

    def _context(self, headers: Headers) -> Any:
        """Never what happens to be this task's current span."""
        from opentelemetry.context import Context

        return self._propagator.extract({name: value.decode("ascii", "replace") for name, value in headers}, Context())

    def _headers(self, span: Span) -> Headers:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return tuple((name, value.encode("ascii", "replace")) for name, value in carrier.items())


class ModelCalls:
    """Spans and metrics of calls to models, under whatever names the guard gives; either may not be wanted."""

    def __init__(self, tracer: Tracer | None, meter: Meter | None) -> None:
        self._tracer, self._meter = tracer, meter
        self._histograms: dict[str, Histogram] = {}

    @contextmanager
    def around(self, name: str, attributes: Values) -> Iterator[Callable[[Values], None]]:
        """A span that others inside become parts of, itself part of the caller's current one. What is called with more
        attributes adds them."""
        if self._tracer is None:
            yield lambda _: None
            return
        with self._tracer.start_as_current_span(name, attributes=dict(attributes)) as span:
            yield lambda more: span.set_attributes(dict(more))

    def asked(self, name: str, attributes: Values, began_us: int, ended_us: int, problem: str = "") -> None:
        """One question to one endpoint, which is over."""
        if self._tracer is None:
            return
        from opentelemetry.trace import SpanKind, StatusCode

        span = self._tracer.start_span(
            name, kind=SpanKind.CLIENT, start_time=began_us * 1000, attributes=dict(attributes)
        )
        if problem:
            span.set_status(StatusCode.ERROR, problem)
        span.end(max(began_us, ended_us) * 1000)

    def measured(self, name: str, unit: str, bounds: Sequence[float], value: float, attributes: Values) -> None:
        """Into the histogram of that name."""
        if self._meter is None:
            return
        found = self._histograms.get(name)
        if found is None:
            found = self._meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=bounds)
            self._histograms[name] = found
        found.record(value, dict(attributes))


class Received(Protocol):
    """A record of Kafka, schemas.record's or the client's."""

    @property
    def topic(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def offset(self) -> int: ...

    @property
    def headers(self) -> Headers: ...


Found = TypeVar("Found", bound=Received)


def traced(records: Iterable[Found], limit: int = TRACED_MAX) -> list[tuple[Found, Headers]]:
    """The first records that belong to a trace which is being recorded, with its headers."""
    found: list[tuple[Found, Headers]] = []
    for record in records:
        if record.headers and is_sampled(headers := trace_of(record.headers)):
            found.append((record, headers))
            if len(found) >= limit:
                break
    return found


def is_sampled(headers: Headers) -> bool:
    """Whether somebody records the trace; False without one."""
    for name, value in headers:
        if name == TRACEPARENT:
            try:
                return bool(int(value.split(b"-")[3], 16) & _SAMPLED)
            except (ValueError, IndexError):
                return False
    return False


_current: Traces | None = None
_models: ModelCalls | None = None
_providers: list[Any] = []


def traces() -> Traces | None:
    """What `configure` made; None: nobody wants traces."""
    return _current


def model_calls() -> ModelCalls | None:
    """The same of calls to models; None: nobody wants their traces or metrics."""
    return _models


def configure(role: str, environment: Mapping[str, str]) -> Traces | None:
    """Once per process. Raises EnvironmentProblem for an exporter that is not installed."""
    global _current, _models
    exporters, metric_exporters = wanted_exporters(environment), wanted_metric_exporters(environment)
    if not exporters and not metric_exporters:
        return None
    try:
        from opentelemetry.sdk.resources import Resource
    except ImportError as error:
        raise EnvironmentProblem(
            "the environment asks for traces or metrics (OTEL_…), and OpenTelemetry is not installed: pip install "
            "'ctxpipe[telemetry]', or set OTEL_TRACES_EXPORTER=none and OTEL_METRICS_EXPORTER=none"
        ) from error
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    own = {"service.namespace": "ctxpipe"} | ({} if named else {"service.name": f"ctxpipe-{role}"})
    resource = Resource.create(own)
    tracer = _tracer(exporters, resource) if exporters else None
    meter = _meter(metric_exporters, resource) if metric_exporters else None
    if tracer is not None:
        _current = Traces(tracer, environment.get("OTEL_SEMCONV_STABILITY_OPT_IN", ""))
    _models = ModelCalls(tracer, meter)
    return _current


def configure_guest(environment: Mapping[str, str]) -> None:
    """In somebody else's application: calls to models go where its own spans and metrics go, where it has set up
    OpenTelemetry's SDK; else as the environment says. Does nothing where `configure` was called. Raises as it does."""
    global _models
    if _models is not None:
        return
    theirs = _of_application("trace", "TracerProvider"), _of_application("metrics", "MeterProvider")
    if theirs == (None, None):
        configure("guard", environment)
        return
    tracers, meters = theirs
    _models = ModelCalls(
        None if tracers is None else tracers.get_tracer("ctxpipe"),
        None if meters is None else meters.get_meter("ctxpipe"),
    )


def _of_application(kind: str, name: str) -> Any:
    """The SDK's provider that an application has set; None where it has none. Imports nothing that is not there."""
    api, sdk = sys.modules.get(f"opentelemetry.{kind}"), sys.modules.get(f"opentelemetry.sdk.{kind}")
    if api is None or sdk is None:
        return None
    provider = api.get_tracer_provider() if kind == "trace" else api.get_meter_provider()
    return provider if isinstance(provider, getattr(sdk, name)) else None


def flush() -> None:
    """At the end of a process: what has not been exported yet is, within FLUSH_S."""
    threads = [threading.Thread(target=one.shutdown, name="telemetry-flush", daemon=True) for one in _providers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FLUSH_S)


def wanted_exporters(environment: Mapping[str, str]) -> Sequence[str]:
    """Names of exporters, as OpenTelemetry registers them; none where nothing asks for traces."""
    places = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return _wanted(environment, "TRACES", places)


def wanted_metric_exporters(environment: Mapping[str, str]) -> Sequence[str]:
    """The same of metrics. An endpoint for everything is not enough: many that take traces take no metrics."""
    return _wanted(environment, "METRICS", ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",))


def _wanted(environment: Mapping[str, str], signal: str, places: Sequence[str]) -> Sequence[str]:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    default = "otlp" if any(environment.get(name) for name in places) else "none"
    names = [name.strip() for name in (environment.get(f"OTEL_{signal}_EXPORTER") or default).split(",")]
    return [_otlp(environment, signal) if name == "otlp" else name for name in names if name not in ("", "none")]


def _tracer(exporters: Sequence[str], resource: Any) -> Tracer:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource)
    for name in exporters:
        exporter: Any = Telling(_exporter(name, "traces"))
        provider.add_span_processor(BatchSpanProcessor(exporter))
    _providers.append(provider)
    return provider.get_tracer("ctxpipe")


def _meter(exporters: Sequence[str], resource: Any) -> Meter:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    readers = [PeriodicExportingMetricReader(_exporter(name, "metrics")) for name in exporters]
    provider = MeterProvider(readers, resource)
    _providers.append(provider)
    return provider.get_meter("ctxpipe")


class Telling:
    """An exporter whose troubles are told once a minute, not with each attempt: they concern traces alone."""

    def __init__(self, exporter: Any) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        self._exporter, self._success = exporter, SpanExportResult.SUCCESS
        self._log = SparseLog(logging.getLogger(__name__), TELL_EVERY_S)
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self.shutdown, self.force_flush = exporter.shutdown, exporter.force_flush

    def export(self, spans: Sequence[Any]) -> Any:
        result = self._exporter.export(spans)
        if result is not self._success:
            self._log.tell(
                "%d spans of traces are lost: the receiver does not take them (see OTEL_EXPORTER_OTLP_ENDPOINT); "
                "nothing else is affected",
                len(spans),
            )
        return result


def _otlp(environment: Mapping[str, str], signal: str) -> str:
    specific = environment.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")
    protocol = specific or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    return "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"


def _exporter(name: str, signal: str) -> Any:
    from importlib.metadata import entry_points

    group = _EXPORTERS[signal]
    try:
        for point in entry_points(group=group, name=name):
            return point.load()()
    except ImportError as error:
        raise EnvironmentProblem(f"the exporter {name} of {signal} can't be loaded: {error}") from error
    known = ", ".join(sorted({"otlp", "none", *(point.name for point in entry_points(group=group))}))
    raise EnvironmentProblem(
        f"no exporter of {signal} is named {name}; here there are {known}. Set OTEL_{signal.upper()}_EXPORTER, or "
        "install it" + (": pip install opentelemetry-exporter-otlp-proto-grpc" if name == "otlp_proto_grpc" else "")
    )
