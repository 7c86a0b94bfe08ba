"""What `ctxpipe check` says of doors that stand open."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands._check_access import check_access
from pipeline.core.config import load
from pipeline.lookup.api_keys import KeyList, StoredKey, write_keys
from schemas.context import ContextSpec
from tests.support.search_world import plane_spec

LOCAL = {"kafka": '{bootstrap_servers: "127.0.0.1:9092"}', "redis": '{url: "redis://127.0.0.1:6379/0"}'}
AWAY = {
    "kafka": '{bootstrap_servers: "192.0.2.1:9092,127.0.0.1:9092"}',
    "redis": '{url: "redis://192.0.2.2:6379/0"}',
}
TENANTS = plane_spec(tenant="owner")
APART = plane_spec(tenant="year", fields=["id", "year"])


def told(folder: Path, sections: dict[str, str], *contexts: ContextSpec) -> list[str]:
    path = folder / "ctxpipe.yaml"
    path.write_text("".join(f"{name}: {text}\n" for name, text in {**LOCAL, **sections}.items()))
    found = check_access(load(path), {spec.context: spec for spec in contexts})
    return [f"{one.severity} {one.subject}: {one.message}" for one in found]


def keys(folder: Path, **more: Any) -> None:
    made = StoredKey(id="a1", name="orders", digest="0" * 64, created_s=1, scopes=("bundles:read:plane",), **more)
    write_keys(folder / "keys.json", KeyList((made,)))


def test_a_stack_of_this_machine_alone_is_fine(tmp_path: Path) -> None:
    assert told(tmp_path, {}, plane_spec()) == []


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"serve": "{host: 0.0.0.0}"}, "unfit access: everybody who reaches 0.0.0.0:8080 reads every bundle"),
        ({"serve": "{host: 0.0.0.0, unprotected: true}"}, "warning access: everybody who reaches"),
        ({"access": "{keys_file: none.json}"}, "unfit access: "),
        ({"access": "{keys_file: keys.json}", "serve": "{host: 0.0.0.0}"}, "warning access: keys and bundles are sent"),
        ({"access": "{keys_file: keys.json}"}, "note access: keys in audit lines"),
        ({"serve": "{tls: {certificate: a, key: b}}"}, "unfit access: "),
        (AWAY, "warning Redis: bundles and the password are sent readable"),
        (AWAY, "warning Redis: everybody who reaches it"),
        (AWAY, "warning Kafka: records are sent readable to 192.0.2.1:9092"),
        (
            {"kafka": "{bootstrap_servers: 'a.invalid:1', security.protocol: SASL_PLAINTEXT, sasl.mechanism: PLAIN, "
             "sasl.username: a, sasl.password: b}"},
            "warning Kafka: records and the login are sent readable",
        ),
        (
            {"kafka": "{bootstrap_servers: 'a.invalid:1', security.protocol: SSL, "
             "ssl.endpoint.identification.algorithm: none}"},
            "warning Kafka: any server with a certificate",
        ),
        (
            {"access": '{mtls: {clients: {"DNS:a": {}}, header: x, proxies: ["0.0.0.0/0"]}}'},
            "warning access: mtls: proxies 0.0.0.0/0",
        ),
    ],
)  # fmt: skip
def test_doors_that_stand_open(tmp_path: Path, sections: dict[str, str], said: str) -> None:
    keys(tmp_path)
    found = told(tmp_path, sections, plane_spec())
    assert any(one.startswith(said) for one in found), found


def test_tenants_that_are_not_kept_apart(tmp_path: Path) -> None:
    assert "keeps tenants apart by owner, but without access" in told(tmp_path, {}, TENANTS)[0]
    keys(tmp_path)
    guarded = {"access": '{keys_file: keys.json, audit_secret: "sixteen characters"}'}
    assert "no filter names owner" in told(tmp_path, guarded, TENANTS)[0]
    assert told(tmp_path, guarded, APART) == []


def test_keys_that_open_nothing_or_not_for_long(tmp_path: Path) -> None:
    guarded = {"access": '{keys_file: keys.json, audit_secret: "sixteen characters"}'}
    keys(tmp_path, expires_s=int(time.time()) + 86_400)
    assert "ends in 1.0 days" in told(tmp_path, guarded, plane_spec())[0]
    assert "names contexts that are not there: plane" in told(tmp_path, guarded)[0]
    keys(tmp_path, expires_s=5)
    assert "has no key that opens anything" in told(tmp_path, guarded, plane_spec())[0]
    (tmp_path / "keys.json").chmod(0o644)
    assert "may be read by everybody" in told(tmp_path, guarded, plane_spec())[0]
