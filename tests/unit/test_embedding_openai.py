"""The engine `openai` against an HTTP server of our own that answers as each test's script says."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy
import pytest

from pipeline.core.config import EmbeddingConfig
from pipeline.core.errors import EnvironmentProblem, Fatal, Poison, Retryable
from pipeline.embedding.engine import Engine, Throttled
from pipeline.embedding.open import open_engine
from pipeline.embedding.openai_answer import RETRY_AFTER_S_MAX, retry_after_s
from schemas.context import Embedding

KEY = "sk-nobody-may-see-this"
Answer = tuple[int, dict[str, str], bytes]


class Server:
    """`script` answers each request's JSON; `asked` keeps what came."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.script: Callable[[dict[str, Any]], Answer] = vectors
        self.pause_s = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append({"path": self.path, **body})
                outer.keys.append(self.headers.get("authorization"))
                status, headers, content = outer.script(body)
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                size = 16 if outer.pause_s else len(content) + 1
                for first in range(0, len(content), size):
                    try:
                        self.wfile.write(content[first : first + size])
                    except OSError:
                        return
                    time.sleep(outer.pause_s)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def engine(self, dimension: int | None = 3, model: str = "m", **endpoint: Any) -> Engine:
        words = {"url": self.url, "api_key": KEY, "timeout_s": 5, **endpoint}
        config = EmbeddingConfig.model_validate({"endpoints": {"here": words}})
        return open_engine(Embedding(engine="openai", model=model, endpoint="here", dimension=dimension), config)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def vectors(body: dict[str, Any], **changes: Any) -> Answer:
    """Each text's vector begins with its length, so that a mix-up shows; items come in reversed order."""
    rows = [[float(len(text)), 1.0, 0.0] for text in body["input"]]
    if body["encoding_format"] == "base64":
        data: list[Any] = [base64.b64encode(numpy.array(row, "<f4").tobytes()).decode() for row in rows]
    else:
        data = rows
    items = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(data)]
    answer = {"data": items[::-1], "usage": {"prompt_tokens": 10 * len(rows)}, **changes}
    return 200, {"content-type": "application/json"}, json.dumps(answer).encode()


def fixed(status: int, body: Any = b"", **headers: str) -> Callable[[dict[str, Any]], Answer]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda _: (status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_come_in_the_order_of_the_texts(server: Server, encoding: str) -> None:
    engine = server.engine(encoding=encoding)
    found = engine.embed(["a", "bbbb", "cc"])
    ratios = found.vectors[:, 0] / found.vectors[:, 1]
    assert ratios.round(4).tolist() == [1, 4, 2]
    assert numpy.allclose(numpy.linalg.norm(found.vectors, axis=1), 1)
    assert server.asked[0]["path"] == "/v1/embeddings" and server.asked[0]["model"] == "m"
    assert server.keys == [f"Bearer {KEY}"]
    assert "dimensions" not in server.asked[0]
    engine.close()
    with pytest.raises(Fatal):
        engine.embed(["a"])


def test_requests_keep_to_the_limits_and_cost_what_was_counted(server: Server) -> None:
    engine = server.engine(request_texts_max=3, request_tokens_max=8, tokens_max=8, price_per_million_tokens=2)
    assert engine.texts_max == 3
    found = engine.embed(["a b c d e", "a b c", "a b", "a", "b", "w " * 20])
    assert [len(asked["input"]) for asked in server.asked] == [2, 3, 1]
    assert found.tokens[-1] == 20 and found.tokens_cut == [0, 0, 0, 0, 0, 12]
    assert len(server.asked[-1]["input"][0].split()) == 8
    assert found.cost == pytest.approx(60 * 2 / 1e6)
    assert server.engine().embed(["a"]).cost is None
    server.script = lambda body: vectors(body, usage=None)
    assert engine.embed(["a"]).cost is None


def test_a_dimension_is_asked_for_where_none_is_given(server: Server) -> None:
    assert server.engine(dimension=None).identity.dimension == 3
    engine = server.engine(dimension=3, ask_dimension=True)
    engine.embed(["a"])
    assert server.asked[-1]["dimensions"] == 3
    server.script = fixed(503)
    with pytest.raises(EnvironmentProblem, match="Write the model's 'dimension'"):
        server.engine(dimension=None)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (500, b"oh", Retryable),
        (502, b"<html>", Retryable),
        (408, b"", Retryable),
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, Fatal),
        (403, {"error": "forbidden"}, Fatal),
        (404, {"error": {"message": "no such model"}}, Fatal),
        (301, b"", Fatal),
        (400, {"error": {"message": "maximum context length"}}, Poison),
        (400, {"error": {"message": "no", "param": "dimensions"}}, Fatal),
        (413, [1], Poison),
        (422, {"detail": [{"msg": "x"}]}, Poison),
    ],
)
def test_what_an_error_means(server: Server, status: int, body: Any, kind: type[Exception]) -> None:
    server.script = fixed(status, body)
    with pytest.raises(kind, match=f"endpoint here answered {status}") as caught:
        server.engine().embed(["a"])
    assert KEY not in str(caught.value) and kind in type(caught.value).__mro__[:2]
    assert len(server.asked) == 1, "trying again is the caller's"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>", "no answer of the /embeddings API"),
        (b"", "no answer of"),
        ({"data": []}, "0 vectors for 2 texts"),
        ({"data": [{"embedding": [1, 2, 3], "index": 0}] * 2}, "numbered its vectors"),
        ({"data": [{"embedding": [1, 2, 3], "index": number} for number in (1, 2)]}, "numbered its vectors"),
        ({"data": [{"embedding": [1, 2]}, {"embedding": [1, 2, 3]}]}, "2 dimensions where 3"),
        ({"data": [{"embedding": [1, 2, None]}, {"embedding": [1, 2, 3]}]}, "no answer of"),
        ({"data": [{"embedding": [1, 2, 1e300]}, {"embedding": [1, 2, 3]}]}, "infinity"),
        ({"data": [{"embedding": [0, 0, 0]}, {"embedding": [1, 2, 3]}]}, "zeros"),
        (b'{"data": [{"embedding": [1, NaN, 2]}, {"embedding": [1, 2, 3]}]}', "no answer of"),
        ({"data": [{"embedding": base64.b64encode(b"\0\0\xc0\x7f" * 3).decode()}] * 2}, "NaN"),
        ({"data": [{"embedding": "*"}] * 2}, "no base64"),
        ({"data": [{"embedding": "AAA="}] * 2}, "no base64"),
        (b"[" * 100_000, "no answer of"),
        (b" " * 3_000_000, "more than"),
    ],
)
def test_an_answer_that_is_none_is_fatal(server: Server, answer: Any, said: str) -> None:
    server.script = fixed(200, answer)
    with pytest.raises(Fatal, match=said):
        server.engine().embed(["a", "b"])


def test_without_indexes_the_order_of_the_answer_holds(server: Server) -> None:
    server.script = fixed(200, {"data": [{"embedding": [1, 0, 0]}, {"embedding": [0, 1, 0]}]})
    assert server.engine().embed(["a", "b"]).vectors.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_throttled_pauses_everybody(server: Server) -> None:
    server.script = fixed(429, {"error": {"message": "slow"}}, retry_after="7")
    engine = server.engine()
    with pytest.raises(Throttled, match="slow") as caught:
        engine.embed(["a"])
    assert caught.value.retry_after_s == 7
    with pytest.raises(Throttled) as again:
        engine.embed(["a"])
    assert 0 < again.value.retry_after_s <= 7
    assert len(server.asked) == 1
    server.script = fixed(503, b"", retry_after="1")
    with pytest.raises(Throttled):
        server.engine(tokens_max=100).embed(["a"])
    assert len(server.asked) == 2, "another endpoint, which nobody paused"


def test_the_own_rate_limit_sends_nothing(server: Server) -> None:
    engine = server.engine(requests_per_minute=1)
    engine.embed(["a"])
    with pytest.raises(Throttled, match="rate limit") as caught:
        engine.embed(["a"])
    assert 0 < caught.value.retry_after_s <= 60 and len(server.asked) == 1


def test_retry_after_in_both_forms_is_clamped() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=42), usegmt=True)
    cases = {"5": 5, "0.5": 0.5, date: 42, "-3": 0, "1e99": RETRY_AFTER_S_MAX, "nan": None, "soon": None, "": None}
    assert {value: retry_after_s({"retry-after": value}, now) for value in cases} == cases
    past = format_datetime(now - timedelta(days=1))
    assert retry_after_s({"retry-after": past}, now) == 0
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "9"}, now) == 0.25


def test_an_endpoint_that_is_away_or_slow_is_tried_again_by_the_caller(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Retryable, match="can't be reached"):
        server.engine(url=f"http://127.0.0.1:{port}/v1").embed(["a"])
    server.pause_s = 0.1
    server.script = fixed(200, b" " * 1000)
    with pytest.raises(Retryable, match=r"did not (finish its answer|answer) in"):
        server.engine(timeout_s=0.3).embed(["a"])
    server.script = fixed(200, b"{}", content_length="5000")
    with pytest.raises(Retryable, match="can't be reached"):
        server.engine().embed(["a"])


def test_an_empty_text_and_a_very_long_one(server: Server) -> None:
    with pytest.raises(Poison):
        server.engine().embed([" "])
    assert not server.asked
    text = "hello wörld, " * 400_000
    found = server.engine(tokens_max=100).embed([text])
    assert found.tokens_cut[0] == found.tokens[0] - 100
    assert len(server.asked[0]["input"][0]) < 1000
