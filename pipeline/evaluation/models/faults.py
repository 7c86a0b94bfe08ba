"""What endpoints do in place of answering, by the names of `pipeline.guard.faults`: the raw answers that the HTTP
client gives of the real fault server, without a socket. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from pipeline.guard.config import Endpoint
from pipeline.guard.faults import FAULTS
from pipeline.guard.faults.answers import GIGABYTE, Exchange
from pipeline.guard.http_client import ERROR_BYTES_MAX, HEADERS_KEPT, not_read
from pipeline.guard.values import Failure, RawAnswer

RECORDED = "recorded"
"""It answers from its recording."""
RAW = "raw:"
"""Before the name of a file whose bytes are the body."""
SLOW_S = 0.1
"""What `slow` takes, here and in the fault server."""
NEVER = frozenset({"hang", "hang_after_headers", "drip"})
"""Nothing whole comes until whoever waits gives up."""
_BROKEN: Mapping[str, tuple[Failure, str]] = {
    "cut": ("cut", "the connection ended in the middle of the answer"),
    "close": ("reset", "the connection ended without an answer"),
    "reset": ("reset", "the connection was reset"),
    "garbage": ("protocol", "what came is no HTTP"),
    "unreachable": ("unreachable", "nobody listens there"),
    "unresolved": ("unresolved", "its name has no address"),
    "expired_tls": ("tls", "its certificate has expired"),
}
"""Of the connection: what the client says of it, and its words where they are a library's otherwise."""
BESIDE = ("unreachable", "unresolved", "expired_tls")
"""Faults that no server can have by script."""
NAMES: tuple[str, ...] = (RECORDED, *FAULTS, *BESIDE)
"""All that `conditions.answers` may name, beside `raw:FILE`."""
OF_WHAT_IT_SAID = frozenset({"valid", "slow", "truncated", "length", "fenced", "two_values"})
"""They do something to what the model says: there has to be a recording of that."""


def scripted(name: str, body: Mapping[str, Any], content: str, endpoint: Endpoint) -> RawAnswer:
    """`body`: what was asked; `content`: what the model says. A `timeout` comes at no time at all: whoever asked gives
    up when its own is over. Raises KeyError for a name that is none."""
    if name in NEVER:
        return RawAnswer(failure="timeout", detail="it did not answer in time")
    if name in _BROKEN:
        failure, detail = _BROKEN[name]
        return RawAnswer(failure=failure, detail=detail)
    if name == "gigabyte_told":
        return _answer("200", {"content-type": "application/json"}, b"", endpoint, GIGABYTE)
    if name == "gigabyte":
        return RawAnswer(
            status=200,
            headers={"content-type": "application/json"},
            failure="too_large",
            detail=f"its answer has more than {endpoint.answer_bytes_max} bytes",
        )
    answer = _read(_written("valid" if name == "slow" else name, body, content), endpoint)
    if name == "slow":
        return RawAnswer(
            status=answer.status, headers=answer.headers, body=answer.body, first_byte_s=SLOW_S, took_s=SLOW_S
        )
    return answer


class _Memory:
    """In the place of a connection."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def write(self, data: bytes) -> None:
        self.bytes += data


def _written(name: str, body: Mapping[str, Any], content: str) -> bytes:
    """What the fault server would write: its own function does it. None of those that come here waits for anything."""
    memory = _Memory()
    work = FAULTS[name](Exchange(cast(asyncio.StreamWriter, memory), body, content, 0.0))
    try:
        work.__await__().__next__()
    except StopIteration:
        return bytes(memory.bytes)
    raise AssertionError(f"the fault {name} waits for something, and needs a line of its own here")


def _read(written: bytes, endpoint: Endpoint) -> RawAnswer:
    head, _, body = written.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return _answer(first.split(" ")[1], headers, body, endpoint, int(headers["content-length"]))


def _answer(status: str, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, length: int) -> RawAnswer:
    kind = headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    unwanted = not_read(int(status), kind, headers.get("content-encoding", "identity"), length, endpoint)
    kept = {name: headers[name] for name in HEADERS_KEPT if name in headers}
    if unwanted is not None:
        return RawAnswer(status=int(status), headers=kept, failure=unwanted[0], detail=unwanted[1])
    most = endpoint.answer_bytes_max if status == "200" else ERROR_BYTES_MAX
    return RawAnswer(status=int(status), headers=kept, body=body[:most])
