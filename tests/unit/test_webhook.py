"""The webhook's end of ours, over real HTTP and TLS: what answers mean, and that a receiver can prove who sent it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from pipeline.core.guarding import WebhookConfig, webhook_key
from pipeline.guard.webhook import Webhook, signature
from tests.support.certificates import make_authority

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@asynccontextmanager
async def receiver(answer: Any, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[web.Request]]]:
    asked: list[web.Request] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        await request.read()
        found = answer(request)
        return await found if asyncio.iscoroutine(found) else found

    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/hook", asked
    finally:
        await runner.cleanup()


def config(url: str, **more: Any) -> WebhookConfig:
    return WebhookConfig(url=url, secret=SecretStr(SECRET), **more)


def test_the_signature_is_the_one_that_the_standards_own_example_has() -> None:
    signed = signature(webhook_key(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "taken"), (204, "taken"), (202, "taken"),
        (302, "refused"), (400, "refused"), (401, "refused"), (404, "refused"), (410, "refused"),
        (408, "failed"), (409, "failed"), (425, "failed"), (429, "failed"), (500, "failed"), (503, "failed"),
    ],
)  # fmt: skip
async def test_what_an_answer_means(status: int, outcome: str) -> None:
    def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"location": "/elsewhere"})

    async with receiver(answer) as (url, asked), Webhook(config(url)) as webhook:
        posted = await webhook.post("q", b'{"kind":"question"}')
        assert posted.outcome == outcome and (outcome == "taken" or str(status) in posted.detail)
        assert [request.path for request in asked] == ["/hook"], "a redirect is not followed"
        head = asked[0].headers
        at_s = int(head["webhook-timestamp"])
        expected = signature(webhook_key(SECRET), "q", at_s, b'{"kind":"question"}')
        assert (head["webhook-id"], head["webhook-signature"]) == ("q", expected)


async def test_a_receiver_that_hangs_or_is_away_may_take_it_later() -> None:
    async def hang() -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with receiver(lambda _: hang()) as (url, _), Webhook(config(url, timeout_s=0.2)) as webhook:
        posted = await webhook.post("q", b"{}")
        assert posted.outcome == "failed" and "0.2 s" in posted.detail
    async with Webhook(config("http://127.0.0.1:1/hook")) as webhook:
        assert (await webhook.post("q", b"{}")).outcome == "failed"


async def test_tls_of_a_known_authority_alone(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    certificate, key = authority.issue("server", "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with receiver(lambda _: web.Response(), context) as (url, asked):
        async with Webhook(config(url), str(authority.certificate)) as webhook:
            assert (await webhook.post("q", b"{}")).outcome == "taken"
        for file in (None, str(tmp_path / "none.pem")):
            async with Webhook(config(url), file) as webhook:
                assert (await webhook.post("q", b"{}")).outcome == "failed"
        assert len(asked) == 1
