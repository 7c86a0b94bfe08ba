"""A request's credential → its principal: API key, token or certificate. Without a good one, nothing is answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.access import AccessConfig, Grant
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError
from pipeline.lookup.api_keys import StoredKey, is_api_key, read_keys, verify_key
from pipeline.lookup.certificates import certificate_names, from_proxy, header_names
from pipeline.lookup.principal import Principal
from pipeline.lookup.tokens import KeysAway, TokenVerifier
from pipeline.lookup.watched_file import WatchedFile

_LOG = logging.getLogger("ctxpipe.access")


class Headers(Protocol):
    def getlist(self, key: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the connection: its address, its certificate as ssl's getpeercert() gives it."""

    address: str | None = None
    certificate: Mapping[str, Any] | None = None


class Refused(CtxpipeError):
    """No or no good credential. The text is for the caller and the same for all; `reason` is for the audit alone."""

    def __init__(self, text: str, reason: str, status: int = 401) -> None:
        self.reason, self.status = reason, status
        super().__init__(text)


class Gate:
    """Safe for concurrent calls in one event loop; its files are read anew when they change."""

    def __init__(self, access: AccessConfig, folder: Path, clock: Clock) -> None:
        """Raises ConfigError for files that can't be used, EnvironmentProblem for a missing package."""
        self._clock, self._mtls = clock, access.mtls
        self._keys = None
        if access.keys_file is not None:
            self._keys = WatchedFile(folder / access.keys_file, _keys_by_id, clock.monotonic_s)
        self._tokens = None if access.jwt is None else TokenVerifier(access.jwt, folder, clock.monotonic_s)

    async def principal(self, headers: Headers, peer: Peer) -> Principal:
        """Raises Refused."""
        bearers, keys = headers.getlist("authorization"), headers.getlist("x-api-key")
        if len(bearers) + len(keys) > 1:
            raise Refused("give one credential: Authorization or x-api-key, once", "several credentials", 400)
        bearer, key = next(iter(bearers), None), next(iter(keys), None)
        if bearer is not None:
            scheme, _, key = bearer.strip().partition(" ")
            if scheme.lower() != "bearer" or not key.strip():
                raise Refused("write Authorization: Bearer, and the key or token after it", "no bearer")
        if key is None:
            return self._by_certificate(headers, peer)
        found, reason = await self._judged(key.strip(), bearer is not None)
        if found is None:
            raise Refused("the credential is not valid here: it is unknown, wrong, revoked or expired", reason)
        return found

    async def _judged(self, text: str, bearer: bool) -> tuple[Principal | None, str]:
        now_s = self._clock.now_us() / 1e6
        if is_api_key(text) or not bearer:
            return (
                (None, "no keys are configured")
                if self._keys is None
                else verify_key(self._keys.content(), text, now_s)
            )
        if self._tokens is None:
            return None, "no tokens are configured"
        try:
            return await self._tokens.verify(text, now_s)
        except KeysAway as error:
            raise Refused("tokens can't be judged now; try again", str(error), 503) from None

    def _by_certificate(self, headers: Headers, peer: Peer) -> Principal:
        names = certificate_names(peer.certificate)
        if self._mtls is not None and self._mtls.header is not None and from_proxy(peer.address, self._mtls.proxies):
            told = headers.getlist(self._mtls.header)
            # Two lines: one of them may be the client's own.
            names = header_names(self._mtls.header, told[0]) if len(told) == 1 else []
        clients = {} if self._mtls is None else self._mtls.clients
        for name in names:
            if name in clients:
                return _granted(name, clients[name])
        if names:
            raise Refused("this certificate is nobody's here", f"unknown certificate {', '.join(names)[:200]}")
        raise Refused("a credential is needed: Authorization: Bearer, or x-api-key", "no credential")


def _keys_by_id(path: Path) -> Mapping[str, StoredKey]:
    return {key.id: key for key in read_keys(path).keys}


def _granted(name: str, grant: Grant) -> Principal:
    fields = {context: tuple(paths) for context, paths in grant.fields.items()}
    return Principal(name, grant.tenant, frozenset(grant.scopes), fields)
