"""The parts of `ctxpipe search` that need no server: conditions as typed, the question as sent, hits as shown."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from pipeline.commands._search_client import ask_server, body_of
from pipeline.commands._search_filters import conditions_of
from pipeline.commands._search_show import show
from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.lookup.search_request import SearchRequest, read_request
from pipeline.stores.spaces import Condition


@pytest.mark.parametrize(
    ("written", "conditions"),
    [
        (["carrier=DL"], [Condition("carrier", "in", ["DL"])]),
        (["carrier=DL", "carrier=UA"], [Condition("carrier", "in", ["DL", "UA"])]),
        (["year=1990"], [Condition("year", "in", [1990, "1990"])]),
        (['year="1990"'], [Condition("year", "in", ["1990"])]),
        (["year<1990"], [Condition("year", "lt", 1990)]),
        (["year >= 1990.5 "], [Condition("year", "ge", 1990.5)]),
        (["day<=2013-01-02"], [Condition("day", "le", "2013-01-02")]),
        (["plane.maker=null"], [Condition("plane.maker", "in", [None])]),
        (["leased=true"], [Condition("leased", "in", [True, "true"])]),
        (["name=a=b"], [Condition("name", "in", ["a=b"])]),
        (["name=[1]"], [Condition("name", "in", ["[1]"])]),
        (["name="], [Condition("name", "in", [""])]),
    ],
)
def test_conditions_as_typed(written: list[str], conditions: list[Condition]) -> None:
    assert conditions_of(written) == (conditions, [])


def test_what_is_no_condition_is_named() -> None:
    conditions, mistakes = conditions_of(["year", "=7", "a b=1", "carrier=DL"])
    assert len(conditions) == 1 and len(mistakes) == 3 and "'year' is no condition" in mistakes[0]


def test_a_question_arrives_as_it_was_sent() -> None:
    request = SearchRequest(
        text="planes",
        k=3,
        conditions=(Condition("year", "ge", 1), Condition("year", "lt", 9), Condition("maker", "in", ["a", None])),
        min_score=0.5,
        mode="vector",
        budget_ms=7.5,
        position=("here", "there"),
    )
    assert read_request(msgspec.json.encode(body_of(request))) == request


class _Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    answers: dict[str, Any]
    credentials: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer()

    def _answer(self) -> None:
        self.credentials.append(self.headers["x-api-key"])
        status, body = self.answers[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    made = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


KNOWN = (200, b'{"contexts":[{"context":"plane"}]}')
SEARCH = "/v1/contexts/plane:search"


@pytest.mark.parametrize(
    ("listed", "found", "error", "said"),
    [
        (KNOWN, (400, b'{"detail":"a; b","mistakes":["a","b"]}'), ConfigError, "a\nb"),
        (KNOWN, (409, b'{"detail":"another space"}'), ConfigError, "another space"),
        (KNOWN, (503, b'{"detail":"is being read"}'), EnvironmentProblem, "is being read"),
        (KNOWN, (502, b"<html>"), EnvironmentProblem, "it answered 502"),
        ((200, b"hello"), None, EnvironmentProblem, "does not answer as"),
        ((404, b""), None, EnvironmentProblem, "does not answer as"),
        ((200, b'{"contexts":[]}'), None, ConfigError, "serves no context 'plane'; it has none"),
    ],
)
def test_refusals_of_a_server(server: HTTPServer, listed: Any, found: Any, error: type[Exception], said: str) -> None:
    _Handler.answers = {"/v1/contexts": listed, SEARCH: found}
    url = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(error, match=said):
        ask_server(url, "plane", SearchRequest(text="x"), must_answer=True)
    if found is None:
        assert ask_server(url, "plane", SearchRequest(text="x"), must_answer=False) is None


def test_an_answer_of_a_server(server: HTTPServer) -> None:
    _Handler.answers = {"/v1/contexts": KNOWN, SEARCH: (200, b'{"hits":[]}')}
    url = f"http://127.0.0.1:{server.server_port}/"
    assert ask_server(url, "plane", SearchRequest(text="x"), must_answer=True) == b'{"hits":[]}'
    with pytest.raises(ConfigError, match="is no address"):
        ask_server("localhost:80", "plane", SearchRequest(text="x"), must_answer=True)


def test_a_server_that_wants_a_credential(server: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _Handler.answers = {"/v1/contexts": (401, b'{"detail":"a credential is needed"}'), SEARCH: None}
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.delenv("CTXPIPE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="put a key that it knows into CTXPIPE_API_KEY"):
        ask_server(url, "plane", SearchRequest(text="x"), must_answer=True)
    monkeypatch.setenv("CTXPIPE_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ConfigError, match="CTXPIPE_API_KEY_FILE names"):
        ask_server(url, "plane", SearchRequest(text="x"), must_answer=True)
    (tmp_path / "key").write_text("ctxpipe_a_b\n")
    _Handler.answers = {"/v1/contexts": KNOWN, SEARCH: (200, b'{"hits":[]}')}
    assert ask_server(url, "plane", SearchRequest(text="x"), must_answer=True) == b'{"hits":[]}'
    assert _Handler.credentials[-1] == "ctxpipe_a_b"


HIT = {
    "key": "N1",
    "cosine": 0.8123,
    "bm25": None,
    "passage": {"text": "a wide\nbody jet"},
    "moved_on": True,
    "answer": {"bundle": {"tail": "N1", "flights": [1], "maker": "[b]Boeing"}},
}
FOUND = {
    "context": "plane",
    "space": "abc",
    "mode": "hybrid",
    "degraded": "the engine is late",
    "index": {"behind_records": 1200},
    "hits": [HIT, {**HIT, "key": "N2", "cosine": None, "bm25": 3.25, "passage": None, "moved_on": False}],
}


@pytest.mark.parametrize("in_terminal", [True, False])
def test_hits_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: Any, in_terminal: bool) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    show(msgspec.json.encode(FOUND), "wide jets", in_terminal)
    out, err = capsys.readouterr()
    head = "plane: 2 hits, hybrid search in space abc, 1,200 records behind; the engine is late"
    assert head in (out if in_terminal else err)
    for shown in ("N1", "0.812", "a wide body jet", "tail=N1, maker=[b]Boeing", "words 3.2"):
        assert shown in out
    assert "flights" not in out
    show(msgspec.json.encode({**FOUND, "hits": []}), "", in_terminal)
    assert "0 hits" in "".join(capsys.readouterr())
