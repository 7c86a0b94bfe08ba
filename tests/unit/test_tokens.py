"""Tokens of an identity provider: signed and in time, or nothing; keys that come, go and stay away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from pipeline.core.access import AccessConfig, JwtConfig
from pipeline.core.clock import SystemClock
from pipeline.lookup.credentials import Gate, Peer, Refused
from pipeline.lookup.principal import Principal
from pipeline.lookup.tokens import KeysAway, TokenVerifier

jwt = pytest.importorskip("jwt")
rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")

ISSUER, AUDIENCE = "https://issuer.example", "ctxpipe"


def now_s() -> int:
    """Asked in each test: a suite may run for an hour after its modules are read, and PyJWT knows one clock."""
    return int(time.time())


class Signer:
    def __init__(self, name: str) -> None:
        self.name, self.key = name, rsa.generate_private_key(65537, 2048)

    @property
    def public(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return {**made, "kid": self.name, "use": "sig", "alg": "RS256"}

    def token(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        all_claims = {
            "iss": ISSUER, "aud": AUDIENCE, "exp": now_s() + 86_400, "sub": "orders", "tenant": "acme",
            "scope": "openid bundles:read:flight search:read", **claims,
        }  # fmt: skip
        given = {name: value for name, value in all_claims.items() if value is not None}
        named = {"kid": self.name, **(headers or {})}
        made: str = jwt.encode(given, self.key, "RS256", {k: v for k, v in named.items() if v is not None})
        return made


ONE, TWO = Signer("one"), Signer("two")


class Provider(ThreadingHTTPServer):
    keys: list[dict[str, Any]]
    asked = 0
    fails = False


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        provider = self.server
        assert isinstance(provider, Provider)
        provider.asked += 1
        body = json.dumps({"keys": provider.keys}).encode()
        self.send_response(500 if provider.fails else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider(("127.0.0.1", 0), Handler)
    made.keys = [ONE.public]
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


class Clock:
    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s


def verifier(provider: Provider, clock: Clock | None = None, **more: Any) -> TokenVerifier:
    url = f"http://127.0.0.1:{provider.server_address[1]}/keys"
    config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_url=url, **more)
    return TokenVerifier(config, Path(), (clock or Clock()).monotonic_s)


async def test_a_good_token_is_its_claims(provider: Provider) -> None:
    made = verifier(provider, fields_claim="shown")
    principal, reason = await made.verify(ONE.token(shown={"flight": ["id"]}), now_s())
    scopes = frozenset({"bundles:read:flight", "search:read"})
    assert (principal, reason) == (Principal("orders", "acme", scopes, {"flight": ("id",)}), "")
    without, _ = await made.verify(ONE.token(tenant=None, scope=["bundles:read"], shown={}), now_s())
    assert without == Principal("orders", None, frozenset({"bundles:read"}))
    assert provider.asked == 1
    for shown in (None, ["id"], {"flight": "id"}, {"flight": [7]}):
        assert (await made.verify(ONE.token(shown=shown), now_s()))[0] is None


def unsigned() -> str:
    made: str = jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "exp": now_s() + 86_400, "sub": "x"}, None, "none")
    return made


def confused() -> str:
    """Signed with what everybody knows: the public key as if it were a shared secret."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": now_s() + 86_400, "sub": "x"}
    made: str = jwt.encode(claims, ONE.public["n"], "HS256", headers={"kid": "one"})
    return made


STRANGER = Signer("one")


NOBODIES: dict[str, Callable[[], str]] = {
    "over": lambda: ONE.token(exp=now_s() - 60),
    "endless": lambda: ONE.token(exp=None),
    "not yet": lambda: ONE.token(nbf=now_s() + 600),
    "other issuer": lambda: ONE.token(iss="https://other"),
    "no issuer": lambda: ONE.token(iss=None),
    "other audience": lambda: ONE.token(aud="other"),
    "no audience": lambda: ONE.token(aud=None),
    "no name": lambda: ONE.token(sub=None),
    "name of a number": lambda: ONE.token(sub=7),
    "tenant of a number": lambda: ONE.token(tenant=7),
    "tenants": lambda: ONE.token(tenant=["acme"]),
    "stranger": lambda: STRANGER.token(),
    "unknown key": lambda: TWO.token(),
    "forged": lambda: ONE.token()[:-3] + "abc",
    "key without a name": lambda: ONE.token({"kid": None}),
    "key of a path": lambda: ONE.token({"kid": "../../etc"}),
    "unsigned": unsigned,
    "confused": confused,
    "empty": lambda: "",
    "two parts": lambda: "a.b",
    "three parts": lambda: "a.b.c",
    "other alphabet": lambda: "…",
    "long": lambda: "x" * 20_000,
}


@pytest.mark.parametrize("made", NOBODIES.values(), ids=NOBODIES)
async def test_anything_else_is_nobody(provider: Provider, made: Callable[[], str]) -> None:
    provider.keys.append({**TWO.public, "kid": "three"})
    token = made()
    principal, reason = await verifier(provider).verify(token, now_s())
    assert principal is None and reason and (not token or token not in reason)


async def test_what_was_good_is_not_remembered_beyond_its_end(provider: Provider) -> None:
    made, at_s = verifier(provider, leeway_s=7), now_s()
    token, long = ONE.token(exp=at_s + 200), ONE.token(exp=at_s + 100_000)
    assert (await made.verify(token, at_s))[0] is not None
    assert made._known[token][1] == at_s + 200 + 7
    assert (await made.verify(long, at_s))[0] is not None
    assert made._known[long][1] == at_s + 300, "no longer than keys are believed without looking again"


async def test_a_new_key_is_asked_for_and_unknown_ones_not_too_often(provider: Provider) -> None:
    clock = Clock()
    made = verifier(provider, clock)
    assert (await made.verify(ONE.token(), now_s()))[0] is not None
    for _ in range(5):
        assert (await made.verify(TWO.token(), now_s()))[0] is None
    assert provider.asked == 1
    provider.keys.append(TWO.public)
    clock.now_s = 11
    assert (await made.verify(TWO.token(), now_s()))[0] is not None and provider.asked == 2


async def test_keys_that_stay_away(provider: Provider) -> None:
    clock = Clock()
    made = verifier(provider, clock)
    provider.fails = True
    for _ in range(3):
        with pytest.raises(KeysAway):
            await made.verify(ONE.token(), now_s())
    assert provider.asked == 1
    provider.fails, clock.now_s = False, 11
    assert (await made.verify(ONE.token(), now_s()))[0] is not None
    provider.fails, clock.now_s = True, 10_000
    assert (await made.verify(ONE.token(sub="again"), now_s()))[0] is not None, "keys that are known count on"


async def test_keys_of_a_file_follow_it(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [ONE.public]}))
    config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file="keys.json")
    made, token = TokenVerifier(config, tmp_path, clock.monotonic_s), ONE.token()
    assert (await made.verify(token, now_s()))[0] is not None
    path.write_text(json.dumps({"keys": [TWO.public, ONE.public]}))
    clock.now_s = 5
    assert (await made.verify(TWO.token(), now_s()))[0] is not None
    path.write_text(json.dumps({"keys": [TWO.public]}))
    clock.now_s = 10
    assert (await made.verify(token, now_s()))[0] is None, "a key that was taken back ends what was remembered"


async def test_a_bearer_is_a_token_where_it_is_no_key(provider: Provider, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{provider.server_address[1]}/keys"
    access = AccessConfig(jwt=JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_url=url))
    gate = Gate(access, tmp_path, SystemClock())

    async def status(value: str, name: str = "authorization") -> int:
        try:
            principal = await gate.principal(Headers({name: value}), Peer())
        except Refused as refused:
            return refused.status
        assert principal.tenant == "acme"
        return 200

    token = ONE.token()
    provider.fails = True
    assert await status(f"Bearer {token}") == 503, "nobody knows whether it is good"
    gate = Gate(access, tmp_path, SystemClock())
    provider.fails = False
    assert [await status(value) for value in (f"Bearer {token}", f"bearer  {token} ")] == [200, 200]
    assert [await status(value) for value in (token, f"Bearer {token}x", "Bearer ctxpipe_a_b")] == [401] * 3
    assert await status(token, "x-api-key") == 401, "a token is sent as a bearer"
