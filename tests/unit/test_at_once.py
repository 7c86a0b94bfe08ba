"""Answers that need no waiting, on real sockets: the same bytes as by the long way, in order, and no ticket is lost."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from pipeline.lookup.admission import Admission, Refusal
from pipeline.lookup.at_once import TICKET, AtOnce, Headers
from pipeline.lookup.host_names import OwnNamesOnly
from pipeline.lookup.hot_path import HotPath
from pipeline.lookup.http import make_app
from pipeline.lookup.protocol import LimitedProtocol
from tests.support.connections import serving
from tests.unit.test_ladder import World

LOOKUP = "/v1/contexts/flight/1"
WAIT_S = 20.0


@dataclass
class Application:
    """Knows /v1/known at once and has a ticket for /v1/ticket; tells of all others how they came."""

    asked: list[str] = field(default_factory=list)
    ticket: AtOnce = field(default_factory=lambda: Admission(1, time.monotonic).admit(None, 1000))

    def at_once(self, path: str, query: bytes, headers: Headers, over_tls: bool) -> AtOnce:
        self.asked.append(path)
        if path == "/v1/ticket":
            return self.ticket
        body = b"at once " + query
        return (200, [(b"content-length", b"%d" % len(body))], body) if path == "/v1/known" else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        body = b"a task " + (b"with a ticket" if scope.get(TICKET) is self.ticket else scope["query_string"])
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def sent(port: int, text: str, answers: int) -> list[str]:
    """Bodies, after everything was sent in one piece."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.replace("\n", "\r\n").encode())
    bodies = []
    async with asyncio.timeout(WAIT_S):
        for _ in range(answers):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head)
            assert head.startswith("HTTP/1.1 200") and length is not None, head
            bodies.append((await reader.readexactly(int(length[1]))).decode())
    writer.close()
    return bodies


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> str:
    return "\n".join([f"{method} {path} HTTP/{version}", "host: here", *headers, "", ""])


async def test_a_connection_goes_on_and_answers_come_in_order() -> None:
    app = Application()
    async with serving(app, LimitedProtocol) as port:
        many = "".join(get(f"/v1/{name}?{number}") for number, name in enumerate(["known", "other", "known"] * 4))
        bodies = await sent(port, many, 12)
        assert [body.split()[-1] for body in bodies] == [str(number) for number in range(12)]
        assert bodies[0] == "at once 0" and set(app.asked) == {"/v1/known"}, "one for each piece that comes"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for number in range(3):
                assert (await client.get(f"/v1/known?{number}")).text == f"at once {number}"
                assert (await client.get(f"/v1/other?{number}")).text == f"a task {number}"
                assert (await client.get("/v1/ticket")).text == "a task with a ticket"
                assert (await client.post("/v1/known", content=b"x" * 100_000)).text == "a task "


@pytest.mark.parametrize(
    "request_text",
    [
        get("/v1/known", "content-length: 3") + "abc",
        get("/v1/known", "transfer-encoding: chunked") + "3\nabc\n0\n\n",
        get("/v1/known", version="1.0"),
        get("/v1/known", "connection: close"),
        get("/v1/known", method="HEAD").replace("HEAD", "OPTIONS"),
        get("http://here/v1/known"),
        get("/v1/known#part"),
    ],
)
async def test_what_is_unusual_goes_the_long_way(request_text: str) -> None:
    app = Application()
    async with serving(app, LimitedProtocol) as port:
        assert (await sent(port, request_text, 1))[0].startswith("a task")
    assert app.asked == []


async def test_a_full_server_and_a_head_that_is_too_large_take_no_tickets() -> None:
    app = Application()
    async with serving(app, LimitedProtocol, limit_concurrency=1) as port, httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/v1/ticket")).status_code == 503
    async with serving(app, LimitedProtocol) as port, httpx.AsyncClient() as client:
        large = {"x-large": "y" * LimitedProtocol.head_bytes_max}
        with contextlib.suppress(httpx.TransportError):
            assert (await client.get(f"http://127.0.0.1:{port}/v1/ticket", headers=large)).status_code == 431
    assert app.asked == []


async def never(*_: object) -> None:
    raise AssertionError("this needs no task")


async def test_the_same_bytes_as_by_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await in_memory()
    admission = Admission(100, time.monotonic)
    app = make_app(world.service, admission=admission)
    long_way = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
    async with (
        serving(OwnNamesOnly(app), LimitedProtocol) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        await client.get(LOOKUP)
        for headers in ({}, {"if-none-match": "*"}, {"x-request-timeout-ms": "100"}):
            slow = await long_way.get(LOOKUP, headers=headers)
            with monkeypatch.context() as patched:
                patched.setattr(HotPath, "__call__", never)
                at_once = await client.get(LOOKUP, headers=headers)
            assert (at_once.status_code, at_once.content) == (slow.status_code, slow.content)
            assert told(at_once) == told(slow)
        assert (await client.get(LOOKUP, headers={"host": "evil.example"})).status_code == 421
        for path in ("/v1/contexts/none/1", LOOKUP + "?budget_ms=no", "/v1/contexts/flight/", LOOKUP + "%20"):
            assert (await client.get(path)).content == (await long_way.get(path)).content
    assert admission.in_flight == 0 and admission.load == 0


async def test_what_is_not_at_hand_is_looked_for_once() -> None:
    world = await in_memory()
    world.near.flush()
    missed, asked = world.near.misses, world.store.asked
    app = make_app(world.service, admission=Admission(100, time.monotonic))
    async with serving(app, LimitedProtocol) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get(LOOKUP)).json()["rung"] == "store"
    assert (world.near.misses - missed, world.store.asked - asked) == (1, 1)


async def test_who_is_refused_is_told_the_same_without_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await in_memory()
    admission = Admission(100, time.monotonic)
    monkeypatch.setattr(admission, "admit", lambda *_: Refusal("too late", 1.2))
    monkeypatch.setattr(admission, "late", lambda *_: Refusal("too late", 1.2))
    app = make_app(world.service, admission=admission)
    long_way = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
    async with serving(app, LimitedProtocol) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        slow = await long_way.get(LOOKUP)
        monkeypatch.setattr(HotPath, "__call__", never)
        at_once = await client.get(LOOKUP)
        assert at_once.status_code == slow.status_code == 503 and at_once.content == slow.content
        assert told(at_once) == told(slow)


async def in_memory() -> World:
    """One bundle in the near cache, whose key was asked for before."""
    world = World()
    await world.service.get("flight", "1")
    world.fill_near()
    assert world.service.at_hand("flight", "1") is not None
    return world


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in ("date", "server", "server-timing")}
