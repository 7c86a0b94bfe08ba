"""A question for people, posted to where they look: signed as Standard Webhooks asks for it, one try at a time.

The receiver recomputes the signature over `webhook-id.webhook-timestamp.body`, refuses old timestamps, and takes what
comes again with the same `webhook-id` for the same question.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, NamedTuple

import aiohttp

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import ConfigError
from pipeline.core.guarding import WebhookConfig, webhook_key
from pipeline.core.tls import client_context

VERSION = "v1"
_PASSING = frozenset({408, 409, 425, 429})
_DETAIL_CHARACTERS_MAX = 200


class Posted(NamedTuple):
    """`refused`: it answered that it will not take this one. `failed`: it may take it later."""

    outcome: Literal["taken", "refused", "failed"]
    detail: str = ""


def signature(key: bytes, name: str, at_s: int, body: bytes) -> str:
    """As `webhook-signature` has it."""
    signed = hmac.digest(key, f"{name}.{at_s}.".encode() + body, hashlib.sha256)
    return f"{VERSION},{base64.b64encode(signed).decode()}"


class Webhook:
    """`async with` it: it holds connections. `certificate_authority` as a path from here."""

    def __init__(
        self, config: WebhookConfig, certificate_authority: str | None = None, clock: Clock | None = None
    ) -> None:
        self.config, self._authority, self._clock = config, certificate_authority, clock or SystemClock()
        self._key = webhook_key(config.secret.get_secret_value())
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None

    async def __aenter__(self) -> Webhook:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, name: str, body: bytes) -> Posted:
        """Once, within `timeout_s`; `name` is the question's id. Raises nothing but a caller's cancel."""
        try:
            async with asyncio.timeout(self.config.timeout_s):
                async with self._opened().post(
                    self.config.url,
                    data=body,
                    headers=self._headers(name, body),
                    allow_redirects=False,
                    ssl=self._tls(),
                ) as answer:
                    return _posted(answer.status)
        except TimeoutError:
            return Posted("failed", f"it did not answer in {self.config.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ssl.SSLError, ValueError, ConfigError) as error:
            return Posted("failed", f"{type(error).__name__}: {error}"[:_DETAIL_CHARACTERS_MAX])

    def _headers(self, name: str, body: bytes) -> Mapping[str, str]:
        at_s = self._clock.now_us() // 1_000_000
        return {
            "content-type": "application/json",
            "user-agent": "ctxpipe",
            "webhook-id": name,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signature(self._key, name, at_s, body),
        }

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        return self._session

    def _tls(self) -> ssl.SSLContext | bool:
        if not self.config.url.startswith("https:"):
            return True
        if self._context is None:
            self._context = client_context("guard.escalations.webhook", self._authority, None, None, None)
        return self._context


def _posted(status: int) -> Posted:
    if 200 <= status < 300:
        return Posted("taken")
    outcome: Literal["refused", "failed"] = "failed"
    if 300 <= status < 500 and status not in _PASSING:
        outcome = "refused"
    return Posted(outcome, f"it answered {status}")
