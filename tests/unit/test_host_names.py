"""Names by which a server that asks for nothing is asked: a page of another site in a browser here has its own."""

from __future__ import annotations

import httpx
import pytest

from pipeline.lookup.host_names import OwnNamesOnly, is_own
from pipeline.lookup.http import make_app
from tests.unit.test_lookup import MemoryReader, service
from tests.unit.test_lookup import reader as reader


@pytest.mark.parametrize(
    ("host", "own"),
    [
        (b"localhost", True), (b"LOCALHOST:8080", True), (b"127.0.0.1:8080", True), (b"[::1]:8080", True),
        (b"::1", True), (b"10.0.0.7", True), (b"api.localhost:80", True), (b"", True), (b"evil.example", False),
        (b"evil.example:8080", False), (b"localhost.evil.example", False), (b"127.0.0.1.evil.example", False),
        (b"[::1].evil.example", False), (b"\xff", False),
    ],
)  # fmt: skip
def test_localhost_and_addresses_are_own(host: bytes, own: bool) -> None:
    assert is_own(host) is own


async def test_other_names_are_told_so(reader: MemoryReader) -> None:
    app = OwnNamesOnly(make_app(service(reader)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/v1/contexts/flight/1")).status_code == 200
        for path in ("/v1/contexts/flight/1", "/v1/contexts", "/page/", "/openapi.json"):
            answer = await client.get(path, headers={"host": "evil.example"})
            assert answer.status_code == 421 and "access section" in answer.json()["detail"]
            assert answer.headers["x-frame-options"] == "DENY"
