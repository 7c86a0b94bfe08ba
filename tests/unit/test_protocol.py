"""A real server on real sockets: heads that are too long or too slow, bodies that never end, clients that don't read,
and certificates of clients."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.access import AccessConfig, Grant, MtlsConfig
from pipeline.core.clock import SystemClock
from pipeline.lookup.credentials import Gate, Peer, Refused
from pipeline.lookup.guarding import CERTIFICATE
from pipeline.lookup.protocol import LimitedProtocol
from tests.support import connections
from tests.support.certificates import make_authority

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
WAIT_S = 20.0
LARGE = b"x" * 8_000_000


class Hasty(LimitedProtocol):
    head_s = body_s = unread_s = 0.3


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads everything, then tells the certificate, or something long."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
    body = LARGE if scope["path"] == "/large" else str(scope.get("extensions", {}).get(CERTIFICATE)).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serving(protocol: type[LimitedProtocol] = Hasty, **options: Any) -> contextlib.AbstractAsyncContextManager[int]:
    return connections.serving(application, protocol, **options)


async def sent(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
        async with asyncio.timeout(WAIT_S):
            return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


async def test_a_client_that_says_nothing_or_drips_is_let_go() -> None:
    async with serving() as port:
        assert (await sent(port)).startswith(b"HTTP/1.1 408 ")
        assert (await sent(port, REQUEST[:10])).startswith(b"HTTP/1.1 408 ")
        dripping = [REQUEST[at : at + 1] for at in range(len(REQUEST))]
        assert (await sent(port, *dripping, pause_s=0.05))[:12] in (b"HTTP/1.1 408", b"reset")
        body = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\nabc"
        assert await sent(port, body) == b"", "an answer was on its way, so that nothing is said"
        after = await sent(port, REQUEST, b"\r\n")
        assert after.startswith(b"HTTP/1.1 200 "), "and between two requests, junk keeps no connection open"


async def test_many_slow_clients_keep_nobody_from_being_answered() -> None:
    async with serving() as port:
        slow = [asyncio.create_task(sent(port, REQUEST[:-2])) for _ in range(100)]
        for _ in range(5):
            assert (await sent(port, REQUEST.replace(b"here", b"here\r\nconnection: close"))).startswith(
                b"HTTP/1.1 200"
            )
        assert {answer[:12] for answer in await asyncio.gather(*slow)} == {b"HTTP/1.1 408"}


@pytest.mark.parametrize("pieces", [1, 50])
async def test_a_head_that_is_too_long(pieces: int) -> None:
    piece = b"x-long: " + b"y" * (Hasty.head_bytes_max // pieces) + b"\r\n"
    async with serving() as port:
        answer = await sent(port, b"GET / HTTP/1.1\r\n" + piece * pieces + b"\r\n")
        assert answer[:12] in (b"HTTP/1.1 431", b"reset")
        endless = await sent(port, b"GET / HTTP/1.1\r\n", *[piece] * (pieces * 4))
        assert endless[:12] in (b"HTTP/1.1 431", b"reset")
        path = await sent(port, b"GET /" + b"z" * Hasty.head_bytes_max + b" HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert path[:12] in (b"HTTP/1.1 431", b"reset")


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(REQUEST.replace(b"/ ", b"/large "))
        await asyncio.sleep(1.5)
        received = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(WAIT_S):
                received = await reader.read(-1)
        assert len(received) < len(LARGE)
        writer.close()


async def test_an_ordinary_client_keeps_its_connection_longer_than_the_clocks() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(REQUEST)
            assert (await reader.readuntil(b"None")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.6)
        writer.close()


async def test_a_certificate_of_the_connection_names_its_holder(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    certificate, key = authority.issue("server", "IP:127.0.0.1")
    mine, my_key = authority.issue("orders", "URI:spiffe://here/orders", "DNS:orders.here")
    options = {
        "ssl_certfile": str(certificate), "ssl_keyfile": str(key),
        "ssl_ca_certs": str(authority.certificate), "ssl_cert_reqs": ssl.CERT_OPTIONAL,
    }  # fmt: skip
    async with serving(**options) as port:

        async def certificate_of(*chain: Path) -> Any:
            context = ssl.create_default_context(cafile=str(authority.certificate))
            if chain:
                context.load_cert_chain(*chain)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(REQUEST.replace(b"here", b"here\r\nconnection: close"))
            answer = (await reader.read()).partition(b"\r\n\r\n")[2].decode()
            writer.close()
            return ast.literal_eval(answer)

        assert await certificate_of() is None
        shown = await certificate_of(mine, my_key)
    clients = {"URI:spiffe://here/orders": Grant(tenant="acme", scopes=["bundles:read"])}
    gate = Gate(AccessConfig(mtls=MtlsConfig(clients=clients)), tmp_path, SystemClock())
    principal = await gate.principal(Lines(), Peer("127.0.0.1", shown))
    assert (principal.name, principal.tenant) == ("URI:spiffe://here/orders", "acme")
    with pytest.raises(Refused):
        await gate.principal(Lines(), Peer("127.0.0.1", None))


class Lines(dict[str, list[str]]):
    def getlist(self, key: str) -> list[str]:
        return self.get(key, [])


async def test_a_proxys_word_counts_from_the_proxy_alone(tmp_path: Path) -> None:
    clients = {"URI:spiffe://here/orders": Grant(tenant="acme", scopes=["bundles:read"])}
    mtls = MtlsConfig(clients=clients, header="x-forwarded-client-cert", proxies=["10.0.0.0/8"])
    gate = Gate(AccessConfig(mtls=mtls), tmp_path, SystemClock())
    other = 'By=x;Subject="CN=a,b;URI=spiffe://here/orders";URI=spiffe://here/other'
    good = f'{other},Hash=ab;Subject="/CN=orders";URI=spiffe://here/orders;DNS=orders.here'

    async def name(address: str | None, *values: str) -> str:
        try:
            return (await gate.principal(Lines({"x-forwarded-client-cert": list(values)}), Peer(address))).name
        except Refused as refused:
            return refused.reason

    assert await name("10.1.2.3", good) == "URI:spiffe://here/orders"
    assert await name("10.1.2.3", other) == "unknown certificate URI:spiffe://here/other"
    assert [await name(address, good) for address in ("127.0.0.1", None, "unix")] == ["no credential"] * 3
    assert await name("10.1.2.3", good, good) == "no credential", "one of two lines may be the client's own"
    assert await name("10.1.2.3", "") == await name("10.1.2.3", '=;,,"') == "no credential"
