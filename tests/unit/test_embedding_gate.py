"""The gate of an endpoint that embeds: three failures close it for everybody, one probes, pauses count for all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from pipeline.core import metrics, telemetry
from pipeline.core.config import EndpointConfig
from pipeline.core.errors import CtxpipeError, Fatal, Poison, Retryable
from pipeline.embedding.endpoint_gate import EndpointGate, gate_of
from pipeline.embedding.engine import Engine, Throttled
from pipeline.embedding.openai import OpenAIEngine
from schemas.context import Embedding
from tests.unit.test_embedding_openai import Server, fixed, vectors
from tests.unit.test_guard_spans import Recorded

_names = count(1)


class World:
    """A server, a gate before it on a clock of the test's own, and engines that share both."""

    def __init__(self, server: Server, **endpoint: Any) -> None:
        self.server, self.now_s, self.name = server, 100.0, f"embedder{next(_names)}"
        given = {"url": server.url, "timeout_s": 5, "breaker": {"open_s": 10, "jitter": 0}, **endpoint}
        self.endpoint = EndpointConfig.model_validate(given)
        self.gate = EndpointGate(self.name, self.endpoint, lambda: self.now_s, lambda: 0.0)

    def engine(self) -> Engine:
        embedding = Embedding(engine="openai", model="m", endpoint=self.name, dimension=3)
        return OpenAIEngine(embedding, self.endpoint, httpx.Client(timeout=5), 3, self.gate)

    def asked(self, engine: Engine) -> str:
        try:
            engine.embed(["a"])
        except CtxpipeError as error:
            return type(error).__name__
        return "answered"

    def counted(self, reason: str) -> float:
        return float(metrics.guard_attempts.labels(self.name, "primary", reason)._value.get())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_three_failures_close_it_for_all_engines_and_one_probe_opens_it_again(server: Server) -> None:
    world = World(server)
    first, second = world.engine(), world.engine()
    server.script = fixed(500)
    assert [world.asked(first), world.asked(second), world.asked(first)] == ["Retryable"] * 3
    assert world.gate.state == "open"
    with pytest.raises(Throttled, match="failed too often") as told:
        second.embed(["a"])
    assert told.value.retry_after_s == pytest.approx(10) and len(server.asked) == 3, "nothing was sent"
    world.now_s += 10
    assert world.asked(first) == "Retryable" and world.asked(second) == "Throttled", "the probe failed"
    world.now_s += 20
    release, arrived = threading.Event(), threading.Event()

    def slow(body: dict[str, Any]) -> Any:
        arrived.set()
        release.wait(30)
        return vectors(body)

    server.script = slow
    with ThreadPoolExecutor(21) as threads:
        probe = threads.submit(world.asked, first)
        assert arrived.wait(30)
        others = [threads.submit(world.asked, world.engine()) for _ in range(20)]
        assert [one.result(30) for one in others] == ["Throttled"] * 20, "somebody else finds out"
        release.set()
        assert probe.result(30) == "answered"
    assert world.gate.state == "closed" and len(server.asked) == 5
    assert (world.counted("server_error"), world.counted("answered"), world.counted("breaker_open")) == (4, 1, 22)
    assert metrics.guard_opened.labels(world.name, "endpoint")._value.get() == 2


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (429, b"", Throttled, "rate_limited"),
        (401, b"", Fatal, "refused"),
        (404, b"", Fatal, "refused"),
        (400, {"error": {"message": "too long"}}, Poison, "refused"),
    ],
)
def test_what_says_nothing_of_the_endpoint_leaves_it_open(
    server: Server, status: int, body: Any, kind: type[Exception], reason: str
) -> None:
    world = World(server)
    server.script = fixed(status, body, retry_after="0")
    for _ in range(5):
        with pytest.raises(kind):
            world.engine().embed(["a"])
        world.now_s += 60
    assert world.gate.state == "closed" and world.counted(reason) == 5


def test_an_endpoint_that_is_away_slow_or_talks_nonsense_closes_it(server: Server) -> None:
    for script, kind, reason in (
        (fixed(200, b"{}"), Fatal, "not_an_answer"),
        (fixed(503), Retryable, "server_error"),
        (lambda body: vectors(body, data=[]), Fatal, "not_an_answer"),
    ):
        world = World(server)
        server.script = script
        for _ in range(3):
            with pytest.raises(kind):
                world.engine().embed(["a"])
        assert world.gate.state == "open" and world.counted(reason) == 3
    world = World(server, url="http://127.0.0.1:1/v1")
    assert [world.asked(world.engine()) for _ in range(4)] == ["Unreachable"] * 3 + ["Throttled"]
    world = World(server, timeout_s=0.05)
    server.script, server.pause_s = vectors, 0.05
    assert world.asked(world.engine()) == "TimedOut" and world.counted("timeout") == 1


def test_a_pause_counts_for_every_engine(server: Server) -> None:
    world = World(server)
    server.script = fixed(429, retry_after="30")
    assert world.asked(world.engine()) == "Throttled"
    server.script = vectors
    assert world.asked(world.engine()) == "Throttled" and len(server.asked) == 1
    world.now_s += 30
    assert world.asked(world.engine()) == "answered"


def test_tokens_and_costs_are_counted_by_the_guards_names(server: Server) -> None:
    priced, unpriced = World(server, price_per_million_tokens=2), World(server)
    for world in (priced, unpriced):
        world.engine().embed(["a", "b"])
        assert metrics.guard_tokens.labels(world.name, "embedding", "input")._value.get() == 20
    assert metrics.guard_cost.labels(priced.name, "embedding")._value.get() == pytest.approx(20 * 2 / 1e6)
    assert metrics.guard_cost_unknown.labels(unpriced.name, "embedding")._value.get() == 1
    assert metrics.guard_in_flight.labels(priced.name)._value.get() == 0


def test_a_request_is_a_span_by_the_conventions(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded()
    monkeypatch.setattr(telemetry, "_models", recorded.calls)
    world = World(server)
    world.engine().embed(["a secret text", "b"])
    server.script = fixed(503)
    assert world.asked(world.engine()) == "Retryable"
    good, bad = recorded.spans()
    assert good.name == bad.name == "embeddings m" and good.kind is SpanKind.CLIENT
    assert dict(good.attributes or {}) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 20,
    }
    assert (bad.attributes or {})["error.type"] == "server_error" and bad.status.status_code is StatusCode.ERROR
    assert len(recorded.points("gen_ai.client.operation.duration")) == 2
    assert [point.sum for point in recorded.points("gen_ai.client.token.usage")] == [20]


def test_one_gate_per_endpoint_and_process() -> None:
    one, same = (EndpointConfig.model_validate({"url": "http://h/v1", "api_key": "k"}) for _ in range(2))
    other = EndpointConfig.model_validate({"url": "http://h/v1", "api_key": "k2"})
    assert gate_of("a", one) is gate_of("a", same)
    assert gate_of("a", one) is not gate_of("a", other) and gate_of("a", one) is not gate_of("b", one)
