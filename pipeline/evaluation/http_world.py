"""What a flow over HTTP is given instead of Python objects: one server with the case's context, models and tools.

Everything is under a path of the case's own; who comes later, after its end, is told so and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.core.clock import Clock
from pipeline.evaluation.models.answers import Answers
from pipeline.evaluation.python_flow import Seen, ToldTools
from pipeline.evaluation.values import Step
from pipeline.evaluation.world import World
from pipeline.guard.config import Endpoint, GuardConfig
from pipeline.guard.errors import HarnessError
from pipeline.guard.values import RawAnswer
from pipeline.lookup.http import make_app

BODY_BYTES_MAX = 32 * 1024 * 1024
_GONE = {"error": {"message": "this case is over; ask at the addresses of the one that runs"}}
Handler = Callable[[Request], Awaitable[Response]]


class Broken(Exception):
    """Ends a connection in the middle of an answer, as the recorded or scripted endpoint did."""


class RealClock:
    """The machine's time, beginning at the case's moment."""

    def __init__(self, began_us: int) -> None:
        self._began_us, self._began_s = began_us, asyncio.get_running_loop().time()

    def now_us(self) -> int:
        return self._began_us + round((self.monotonic_s() - self._began_s) * 1_000_000)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


@dataclass(frozen=True)
class Offered:
    """Of one case. `answers` None: the suite names no models."""

    world: World
    answers: Answers | None
    guard: GuardConfig | None
    tools: ToldTools
    clock: Clock
    seen: Seen


class CaseServer:
    """The ASGI application; `offer` begins a case and gives the path that everything of it is under."""

    def __init__(self) -> None:
        self._number = 0
        self._offered: Offered | None = None
        self._lookups: ASGIApp | None = None

    def offer(self, offered: Offered) -> str:
        self._number += 1
        self._offered = offered
        self._lookups = make_app(offered.world.service, offered.world.searches)
        return f"/{self._number}"

    def close(self) -> None:
        """Of the case: what is asked from now on is refused."""
        self._offered = self._lookups = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        number, _, rest = scope["path"].removeprefix("/").partition("/")
        offered = self._offered
        if offered is None or self._lookups is None or number != str(self._number):
            await JSONResponse(_GONE, 410)(scope, receive, send)
            return
        part, _, inner = rest.partition("/")
        if part == "context":
            path = f"/{inner}"
            await self._lookups({**scope, "path": path, "raw_path": path.encode(), "root_path": ""}, receive, send)
            return
        request = Request(scope, receive)
        if part == "model":
            await _Models(offered).answer(request, inner, send)
        elif part == "tools":
            await (await _of_tool(offered, request, inner))(scope, receive, send)
        else:
            await _refused(404, f"there is no {part!r}; there are context, model and tools")(scope, receive, send)


class _Models:
    """POST ENDPOINT/v1/chat/completions."""

    def __init__(self, offered: Offered) -> None:
        self._offered = offered

    async def answer(self, request: Request, path: str, send: Send) -> None:
        name, _, rest = path.partition("/")
        guard = self._offered.guard
        endpoint = next((one for one in guard.endpoints if one.name == name), None) if guard is not None else None
        if endpoint is None or self._offered.answers is None or rest != "v1/chat/completions":
            told = _refused(404, f"there is no endpoint {name!r}, or no {rest!r} there")
            await told(request.scope, request.receive, send)
            return
        body = await _json_of(request)
        if not isinstance(body, dict):
            await _refused(400, "the body has to be a JSON object")(request.scope, request.receive, send)
            return
        began_s = self._offered.clock.monotonic_s()
        try:
            raw = self._offered.answers.next(body, endpoint, request.headers.get("x-ctxpipe-task", ""))
        except HarnessError as error:
            await _refused(500, str(error))(request.scope, request.receive, send)
            return
        self._tell(endpoint, raw, began_s)
        await _Raw(raw, endpoint).send(request, send)

    def _tell(self, endpoint: Endpoint, raw: RawAnswer, at_s: float) -> None:
        came = {"endpoint": endpoint.name, "status": raw.status, "failure": raw.failure or ""}
        step = Step(what="model", name=endpoint.name, came=came, at_ms=round(at_s * 1000, 3))
        self._offered.seen.steps.append(step)


class _Raw:
    """A raw answer over the wire, with the time that it took and the way it failed."""

    def __init__(self, raw: RawAnswer, endpoint: Endpoint) -> None:
        self._raw, self._endpoint = raw, endpoint

    async def send(self, request: Request, send: Send) -> None:
        raw = self._raw
        if raw.failure == "timeout":
            await _until_gone(request)
            return
        await asyncio.sleep(raw.took_s)
        if raw.failure is None:
            await _start(send, raw.status, raw.headers, len(raw.body))
            await send({"type": "http.response.body", "body": raw.body})
        elif raw.failure == "redirect":
            await _start(send, 302, {"location": "http://127.0.0.1:9/"}, 0)
            await send({"type": "http.response.body", "body": b""})
        elif raw.failure == "content_type":
            await Response("<html>", 200, media_type="text/html")(request.scope, request.receive, send)
        elif raw.failure == "too_large":
            size = self._endpoint.answer_bytes_max + 1
            await _start(send, 200, {"content-type": "application/json"}, size)
            await send({"type": "http.response.body", "body": b" " * size})
        else:
            await _start(send, 200, {"content-type": "application/json"}, 1000)
            await send({"type": "http.response.body", "body": b'{"choices', "more_body": True})
            raise Broken


async def _start(send: Send, status: int, headers: Mapping[str, str], length: int) -> None:
    named = {"content-type": "application/json", **headers, "content-length": str(length)}
    encoded = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def _until_gone(request: Request) -> None:
    """The one who asked gives up first; ending here without an answer would be one."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _of_tool(offered: Offered, request: Request, name: str) -> Response:
    arguments = await _json_of(request)
    if request.method != "POST" or not isinstance(arguments, dict):
        return _refused(400, "a tool is called by POST of a JSON object with its arguments")
    try:
        return JSONResponse({"value": await offered.tools.call(name, arguments)})
    except Exception as error:  # noqa: BLE001 - the suite's own tool; the flow is told, as a Python flow would be
        return _refused(500, f"{type(error).__name__}: {error}")


async def _json_of(request: Request) -> Any:
    """None for what is none."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                return None
        return msgspec.json.decode(bytes(body))
    except (ClientDisconnect, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)
