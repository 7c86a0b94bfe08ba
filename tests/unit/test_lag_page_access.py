"""Pages of serve may ask who reads them: the collector says it, and tells what is missing where it can't."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from pipeline.core.collecting import CollectorConfig
from pipeline.ops.lag.collector import Settings, _page

KEY = "ck_reader_secret"


class Guarded(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Bearer {KEY}"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b"# TYPE x gauge\nx 1\n" if known else b"")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


def test_a_page_is_read_with_the_key(url: str) -> None:
    assert not isinstance(_page(url, 5.0, KEY), str)


def test_without_it_the_way_to_mend_is_told(url: str) -> None:
    for key in ("", "ck_another"):
        told = _page(url, 5.0, key)
        assert told == "it answers 401; collector: scrape_key names an API key with the scope metrics:read"


def test_the_key_is_shown_nowhere() -> None:
    assert KEY not in repr(CollectorConfig.model_validate({"scrape_key": KEY}))
    assert KEY not in repr(Settings(scrape_key=KEY))
