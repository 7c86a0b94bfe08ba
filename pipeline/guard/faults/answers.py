"""What the fault server can do to a request: one function per fault, each writes what goes over the wire."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

GIGABYTE = 1024**3
DRIP_S = 0.05
NEVER_S = 3600.0
LONG_AGO = "Wed, 21 Oct 2015 07:28:00 GMT"
FAR_AWAY = "Fri, 31 Dec 9999 23:59:59 GMT"
_CHUNK = b" " * 65_536


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request. `body` is what was asked, `content` what a well-behaved model would say."""

    writer: asyncio.StreamWriter
    body: Mapping[str, Any]
    content: str
    delay_s: float


Fault = Callable[[Exchange], Awaitable[bool]]
"""Returns whether the connection may be used again."""


def completion(content: str | None, finish_reason: str = "stop", **message: Any) -> bytes:
    """The body of a chat completion."""
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
    }
    return json.dumps(answer).encode()


def reply(
    status: str,
    body: bytes,
    kind: str = "application/json",
    headers: Mapping[str, str] | None = None,
    length: int | None = None,
) -> bytes:
    """A whole answer of HTTP; `length` is what it says of itself where that is not so."""
    lines = [
        f"HTTP/1.1 {status}",
        f"content-type: {kind}",
        f"content-length: {len(body) if length is None else length}",
    ]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _says(make: Callable[[str], bytes]) -> Fault:
    """A whole answer of 200."""

    async def fault(exchange: Exchange) -> bool:
        exchange.writer.write(reply("200 OK", make(exchange.content)))
        return True

    return fault


def _replies(answer: bytes) -> Fault:
    async def fault(exchange: Exchange) -> bool:
        exchange.writer.write(answer)
        return True

    return fault


def _error(status: str, message: str, retry_after: str | None = None) -> Fault:
    body = json.dumps({"error": {"message": message, "type": "scripted"}}).encode()
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return _replies(reply(status, body, headers=headers))


async def _slow(exchange: Exchange) -> bool:
    await asyncio.sleep(exchange.delay_s)
    exchange.writer.write(reply("200 OK", completion(exchange.content)))
    return True


async def _hang(exchange: Exchange) -> bool:
    await asyncio.sleep(NEVER_S)
    return False


async def _hang_after_headers(exchange: Exchange) -> bool:
    exchange.writer.write(reply("200 OK", b"", length=1000))
    await asyncio.sleep(NEVER_S)
    return False


async def _drip(exchange: Exchange) -> bool:
    exchange.writer.write(reply("200 OK", b"", length=100_000))
    for _ in range(100_000):
        exchange.writer.write(b" ")
        await exchange.writer.drain()
        await asyncio.sleep(DRIP_S)
    return False


async def _gigabyte(exchange: Exchange) -> bool:
    exchange.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = f"{len(_CHUNK):x}\r\n".encode() + _CHUNK + b"\r\n"
    for _ in range(GIGABYTE // len(_CHUNK)):
        exchange.writer.write(chunk)
        await exchange.writer.drain()
    return False


async def _gigabyte_told(exchange: Exchange) -> bool:
    exchange.writer.write(reply("200 OK", b"", length=GIGABYTE))
    for _ in range(GIGABYTE // len(_CHUNK)):
        exchange.writer.write(_CHUNK)
        await exchange.writer.drain()
    return False


async def _cut(exchange: Exchange) -> bool:
    body = completion(exchange.content)
    exchange.writer.write(reply("200 OK", body[: len(body) // 2], length=len(body)))
    await exchange.writer.drain()
    return False


async def _close(exchange: Exchange) -> bool:
    return False


async def _reset(exchange: Exchange) -> bool:
    """RST instead of FIN."""
    connection = exchange.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.transport.abort()
    return False


async def _redirect(exchange: Exchange) -> bool:
    exchange.writer.write(reply("302 Found", b"", headers={"location": "/valid/elsewhere/v1/chat/completions"}))
    return True


def _tool_call(arguments: str, finish_reason: str) -> Fault:
    async def fault(exchange: Exchange) -> bool:
        tools = exchange.body.get("tools") or [{"function": {"name": "unknown"}}]
        call = {
            "id": "call_1",
            "type": "function",
            "function": {"name": tools[0]["function"]["name"], "arguments": arguments},
        }
        exchange.writer.write(reply("200 OK", completion(None, finish_reason, tool_calls=[call])))
        return True

    return fault


HTML = b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>"
FAULTS: Mapping[str, Fault] = {
    "valid": _says(completion),
    "slow": _slow,
    # of the connection
    "hang": _hang,
    "hang_after_headers": _hang_after_headers,
    "drip": _drip,
    "gigabyte": _gigabyte,
    "gigabyte_told": _gigabyte_told,
    "cut": _cut,
    "close": _close,
    "reset": _reset,
    "garbage": _replies(b"\x00\x01\x02 this is no HTTP\r\n\r\n"),
    "compressed": _replies(reply("200 OK", gzip.compress(b" " * 10_000_000), headers={"content-encoding": "gzip"})),
    # of HTTP
    "html": _replies(reply("200 OK", HTML, "text/html")),
    "html_as_json": _replies(reply("200 OK", HTML)),
    "wrong_type": _replies(reply("200 OK", completion("{}"), "application/octet-stream")),
    "redirect": _redirect,
    "bad_request": _error("400 Bad Request", "messages: too long"),
    "unauthorized": _error("401 Unauthorized", "Incorrect API key provided"),
    "error_500": _error("500 Internal Server Error", "out of memory"),
    "error_503": _error("503 Service Unavailable", "loading the model"),
    "rate_limited": _error("429 Too Many Requests", "slow down", retry_after="2"),
    "rate_limited_absurd": _error("429 Too Many Requests", "slow down", retry_after="99999999999999999999"),
    "rate_limited_negative": _error("429 Too Many Requests", "slow down", retry_after="-5"),
    "rate_limited_past": _error("429 Too Many Requests", "slow down", retry_after=LONG_AGO),
    "rate_limited_far": _error("429 Too Many Requests", "slow down", retry_after=FAR_AWAY),
    "rate_limited_nonsense": _error("429 Too Many Requests", "slow down", retry_after="soon"),
    # of the answer
    "empty": _replies(reply("200 OK", b"")),
    "no_choices": _replies(reply("200 OK", b'{"choices": []}')),
    "truncated": _says(lambda content: completion(content[: len(content) // 2])),
    "length": _says(lambda content: completion(content, "length")),
    "tool_call": _tool_call("{}", "tool_calls"),
    "truncated_tool_call": _tool_call('{"city": "Ber', "stop"),
    "unknown_fields": _says(lambda content: completion('{"nobody": "knows"}')),
    "prose": _says(lambda content: completion("I'd rather not say.")),
    "fenced": _says(lambda content: completion(f"Here you are:\n```json\n{content}\n```\n")),
    "two_values": _says(lambda content: completion(f"Either {content} or {content}.")),
    "duplicate_key": _says(lambda content: completion('{"a": 1, "a": 2}')),
    "not_a_number": _says(lambda content: completion('{"a": NaN}')),
    "too_deep": _says(lambda content: completion("[" * 100_000 + "]" * 100_000)),
    "refusal": _says(lambda content: completion(None, refusal="I can't help with that.")),
    "filtered": _says(lambda content: completion("", "content_filter")),
}
"""Name → what it does."""
