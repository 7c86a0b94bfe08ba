"""The sections `access` and `serve: tls`: what they take, every mistake, and who may listen where."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands._access import is_local, open_guard, refuse_unprotected, server_options
from pipeline.core.config import Config, load
from pipeline.core.errors import ConfigError
from tests.support.certificates import make_authority

SERVERS = 'kafka: {bootstrap_servers: "127.0.0.1:9092"}\nredis: {url: "redis://127.0.0.1:6379/0"}\n'


def loaded(folder: Path, text: str) -> Config:
    path = folder / "ctxpipe.yaml"
    path.write_text(SERVERS + text)
    return load(path)


FULL = """\
access:
  keys_file: keys.json
  audit_secret: "a secret of sixteen signs"
  jwt: {issuer: "https://i.example", audience: ctxpipe, jwks_url: "https://i.example/keys", algorithms: [ES256]}
  mtls:
    header: x-forwarded-client-cert
    proxies: [10.0.0.0/8]
    clients:
      "URI:spiffe://here/orders": {tenant: acme, scopes: ["bundles:read:flight"], fields: {flight: [id]}}
"""


def test_a_full_section(tmp_path: Path) -> None:
    config = loaded(tmp_path, FULL)
    assert config.access.configured and config.access.jwt is not None and config.access.mtls is not None
    assert "a secret of sixteen" not in f"{config.shown()}{config!r}"
    assert not loaded(tmp_path, "").access.configured


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("access: {keyfile: a}", "did you mean keys_file?"),
        ("access: {jwt: {issuer: a, audience: b}}", "give one of 'jwks_url' and 'jwks_file'"),
        ("access: {jwt: {issuer: a, audience: b, jwks_file: c, algorithms: [HS256]}}", "'HS256' is not one of RS256"),
        ("access: {jwt: {issuer: a, audience: b, jwks_file: c, algorithms: [none]}}", "'none' is not one of"),
        ("access: {jwt: {issuer: a, audience: b, jwks_file: c, algorithms: []}}", "must not be empty"),
        ('access: {jwt: {issuer: a, audience: b, jwks_url: "http://i.example/k"}}', "write https://"),
        ('access: {mtls: {clients: {"DNS:a": {}}}}', "nothing shows clients' certificates"),
        ('access: {mtls: {clients: {"a": {}}, header: x, proxies: [10.0.0.0/8]}}', "write URI:…, DNS:… or email:…"),
        ('access: {mtls: {clients: {"DNS:a": {}}, header: x}}', "belong together"),
        ('access: {mtls: {clients: {"DNS:a": {}}, header: x, proxies: [10.0.0.1/8]}}', "is no network"),
        ('access: {mtls: {clients: {"DNS:a": {scopes: [read]}}, header: x, proxies: ["::1"]}}', "'read' is no scope"),
        ("access: {audit_secret: short}", "audit_secret"),
        ("serve: {tls: {certificate: a}}", "'key' is missing"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, text)
    assert told in str(error.value) and "ctxpipe.yaml:3: " in str(error.value)


def test_without_a_guard_only_this_machine_is_served(tmp_path: Path) -> None:
    bare = loaded(tmp_path, "")
    assert not open_guard(bare).active
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        refuse_unprotected(bare, host, meant=False)
    for host in ("0.0.0.0", "::", "", "192.0.2.1", "no.such.host.invalid"):
        assert not is_local(host)
        with pytest.raises(ConfigError, match="lets every machine that reaches it read every bundle"):
            refuse_unprotected(bare, host, meant=False)
        refuse_unprotected(bare, host, meant=True)
    refuse_unprotected(loaded(tmp_path, "serve: {unprotected: true}"), "0.0.0.0", meant=False)
    refuse_unprotected(loaded(tmp_path, "access: {keys_file: keys.json}"), "0.0.0.0", meant=False)


def test_a_guard_needs_its_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.json: no such file of keys; make the first key with ctxpipe key new"):
        open_guard(loaded(tmp_path, "access: {keys_file: keys.json}"))
    with pytest.raises(ConfigError, match="the issuer's keys can't be read"):
        open_guard(loaded(tmp_path, "access: {jwt: {issuer: a, audience: b, jwks_file: no.json}}"))
    (tmp_path / "no.json").write_text('{"keys": 7}')
    with pytest.raises(ConfigError, match="no JSON Web Key Set"):
        open_guard(loaded(tmp_path, "access: {jwt: {issuer: a, audience: b, jwks_file: no.json}}"))


def test_tls_needs_files_that_fit(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    authority.issue("server", "IP:127.0.0.1")
    options = server_options(loaded(tmp_path, "serve: {tls: {certificate: server.pem, key: server.key}}"))
    assert options["ssl_certfile"] == str(tmp_path / "server.pem") and options["ssl_ca_certs"] is None
    for text in ("certificate: no.pem, key: server.key", "certificate: server.pem, key: ca.key"):
        with pytest.raises(ConfigError, match=r"serve\.tls: .*can't be used"):
            server_options(loaded(tmp_path, f"serve: {{tls: {{{text}}}}}"))
    mutual = "serve: {tls: {certificate: server.pem, key: server.key, client_ca: ca.pem}}\n"
    mutual += 'access: {mtls: {clients: {"DNS:a": {}}}}'
    assert server_options(loaded(tmp_path, mutual))["ssl_ca_certs"] == str(tmp_path / "ca.pem")
