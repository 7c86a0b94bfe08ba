"""A receiver of traces as OTLP over HTTP: what a collector of OpenTelemetry is, in a thread of the test."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    """A span, its ids as hex; `parent` is empty for the first of a trace."""

    name: str
    service: str
    trace: str
    span: str
    parent: str
    began_us: int
    ended_us: int
    attributes: dict[str, Any]
    links: frozenset[str]


@dataclass
class OtlpReceiver:
    """`endpoint` is what OTEL_EXPORTER_OTLP_ENDPOINT is set to."""

    endpoint: str
    spans: list[ReceivedSpan] = field(default_factory=list)

    def of_trace(self, trace: str) -> list[ReceivedSpan]:
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.began_us)


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.spans += spans_of(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = OtlpReceiver(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()


def spans_of(request: Any) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = {one.key: one.value.string_value for one in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield ReceivedSpan(
                    span.name,
                    resource.get("service.name", ""),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano // 1000,
                    span.end_time_unix_nano // 1000,
                    {one.key: one.value.string_value or one.value.int_value for one in span.attributes},
                    frozenset(link.trace_id.hex() for link in span.links),
                )
