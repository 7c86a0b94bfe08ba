"""JSON Web Tokens of an identity provider → principals: the only import of PyJWT."""

from __future__ import annotations

import asyncio
import logging
import math
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.core.access import JwtConfig, check_scope
from pipeline.core.errors import ConfigError, CtxpipeError, EnvironmentProblem
from pipeline.lookup.principal import Principal
from pipeline.lookup.watched_file import WatchedFile

TOKEN_CHARACTERS_MAX = 16_384
KEYS_BYTES_MAX = 1024 * 1024
REFUSED_KEYS_WAIT_S = 10.0
"""So often at most the keys are asked for because a token names one that nobody knows: anybody can write one."""
REMEMBERED_TOKENS = 10_000

_LOG = logging.getLogger("ctxpipe.access")


class KeysAway(CtxpipeError):
    """The issuer's keys were never read, so that no token can be judged."""


class TokenVerifier:
    """Belongs to one event loop. Keys are read in a thread; a token that was good is remembered until it ends."""

    def __init__(self, config: JwtConfig, folder: Path, monotonic_s: Callable[[], float]) -> None:
        """Raises EnvironmentProblem without PyJWT, ConfigError for a `jwks_file` that holds no keys."""
        self._jwt = _library()
        self._config, self._monotonic_s = config, monotonic_s
        self._keys: Mapping[str, Any] = {}
        self._read_at_s: float | None = None
        self._reading = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self._known: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self._file: WatchedFile[Mapping[str, Any]] | None = None
        if config.jwks_file is not None:
            self._file = WatchedFile(folder / config.jwks_file, self._from_file, monotonic_s)

    async def verify(self, token: str, now_s: float) -> tuple[Principal | None, str]:
        """(principal, ""), or None and why, for the log alone. Raises KeysAway."""
        if self._file is not None:
            self._file.content()  # new keys end what was remembered of old ones
        known = self._known.get(token)
        if known is not None and now_s < known[1]:
            return known[0], ""
        if len(token) > TOKEN_CHARACTERS_MAX:
            return None, "token too long"
        try:
            header = self._jwt.get_unverified_header(token)
            if header.get("alg") not in self._config.algorithms:
                return None, f"algorithm {str(header.get('alg'))[:20]!r} is not allowed"
            key = await self._key(header.get("kid"))
            if key is None:
                return None, "signed with an unknown key"
            claims = self._claims(token, key)
        except (self._jwt.PyJWTError, ValueError, TypeError) as error:
            return None, str(error)[:200]
        principal, problem = self._principal(claims)
        if principal is not None:
            until_s = min(float(claims["exp"]) + self._config.leeway_s, now_s + self._config.keys_age_s_max)
            self._remember(token, principal, until_s)
        return principal, problem

    def _claims(self, token: str, key: Any) -> dict[str, Any]:
        config = self._config
        claims: dict[str, Any] = self._jwt.decode(
            token,
            key,
            algorithms=list(config.algorithms),
            issuer=config.issuer,
            audience=config.audience,
            leeway=config.leeway_s,
            options={"require": ["exp", "iss", "aud"]},
        )
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> tuple[Principal | None, str]:
        config = self._config
        name, tenant = claims.get(config.name_claim), claims.get(config.tenant_claim)
        if not isinstance(name, str) or not name:
            return None, f"claim {config.name_claim} is missing"
        if tenant is not None and not isinstance(tenant, str):
            return None, f"claim {config.tenant_claim} is no text"
        # Where tokens are to say what they show, one that does not shows nothing.
        fields = {} if config.fields_claim is None else claims.get(config.fields_claim)
        if not isinstance(fields, dict) or not _are_fields(fields):
            return None, f"claim {config.fields_claim} is no object of lists"
        scopes = frozenset(scope for scope in _words(claims.get(config.scope_claim)) if _is_scope(scope))
        shown = {context: tuple(paths) for context, paths in fields.items()}
        return Principal(name, tenant or None, scopes, shown), ""

    async def _key(self, key_id: str | None) -> Any:
        if self._file is not None:
            return _chosen(self._file.content(), key_id)
        key, age_s = _chosen(self._keys, key_id), self._age_s
        if key is not None and age_s > self._config.keys_age_s_max and self._refreshing is None:
            # Beside the requests: keys that have grown old are better than a request that waits.
            self._refreshing = asyncio.create_task(self._refresh())
        if key is None and age_s > REFUSED_KEYS_WAIT_S:
            async with self._reading:
                if self._age_s > REFUSED_KEYS_WAIT_S:
                    await self._fetch()
                key = _chosen(self._keys, key_id)
        if not self._keys:
            raise KeysAway("the issuer's keys can't be read; see the server's log")
        return key

    @property
    def _age_s(self) -> float:
        """Since keys were last asked for."""
        return math.inf if self._read_at_s is None else self._monotonic_s() - self._read_at_s

    async def _refresh(self) -> None:
        try:
            async with self._reading:
                await self._fetch()
        finally:
            self._refreshing = None

    async def _fetch(self) -> None:
        url = self._config.jwks_url
        assert url is not None
        try:
            body = await asyncio.to_thread(_get, url, self._config.timeout_s)
            self._keys = self._parsed(body, url)
            self._known.clear()
        except (OSError, ValueError, ConfigError) as error:
            _LOG.error("keys of %s can't be read; those that are known count on: %s", self._config.issuer, error)
        finally:
            self._read_at_s = self._monotonic_s()

    def _from_file(self, path: Path) -> Mapping[str, Any]:
        try:
            found = self._parsed(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError([f"{path}: the issuer's keys can't be read: {error.strerror or error}"]) from None
        self._known.clear()
        return found

    def _parsed(self, body: bytes, place: str) -> Mapping[str, Any]:
        try:
            keys = self._jwt.PyJWKSet.from_dict(msgspec.json.decode(body, type=dict[str, Any])).keys
        except (self._jwt.PyJWTError, msgspec.DecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
            raise ConfigError([f"{place}: this is no JSON Web Key Set: {error}"]) from None
        return {key.key_id or f"number {number}": key for number, key in enumerate(keys)}

    def _remember(self, token: str, principal: Principal, until_s: float) -> None:
        self._known[token] = (principal, until_s)
        while len(self._known) > REMEMBERED_TOKENS:
            self._known.popitem(last=False)


def _chosen(keys: Mapping[str, Any], key_id: str | None) -> Any:
    """Without a name, the only one."""
    if key_id is None:
        return next(iter(keys.values())) if len(keys) == 1 else None
    return keys.get(key_id) if isinstance(key_id, str) else None


def _get(url: str, timeout_s: float) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        body: bytes = answer.read(KEYS_BYTES_MAX + 1)
    if len(body) > KEYS_BYTES_MAX:
        raise ValueError(f"more than {KEYS_BYTES_MAX:,} bytes")
    return body


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _is_scope(text: str) -> bool:
    """Providers give scopes of other services beside ours."""
    try:
        check_scope(text)
    except ValueError:
        return False
    return True


def _are_fields(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in value.values())


def _library() -> Any:
    try:
        import cryptography
        import jwt
    except ImportError:
        raise EnvironmentProblem(
            "access: jwt needs the package PyJWT with cryptography. Install it with: pip install 'ctxpipe[access]'"
        ) from None
    assert cryptography
    return jwt
