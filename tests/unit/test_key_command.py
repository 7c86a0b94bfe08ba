"""`ctxpipe key`: keys are shown once, kept as hashes, rotated with an overlap, revoked; and what people get wrong."""

from __future__ import annotations

import json
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.core.errors import ConfigError
from pipeline.lookup.api_keys import read_keys, verify_key

CONFIG = """\
kafka: {bootstrap_servers: "127.0.0.1:9092"}
redis: {url: "redis://127.0.0.1:6379/0"}
access: {keys_file: secrets/keys.json}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ctxpipe.yaml").write_text(CONFIG)
    return tmp_path


FILE = Path("secrets/keys.json")


def made(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["key", "new", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def usable(key: str, at_s: float | None = None) -> bool:
    keys = {one.id: one for one in read_keys(FILE).keys}
    return verify_key(keys, key, time.time() if at_s is None else at_s)[0] is not None


def test_a_key_is_shown_once_and_kept_as_a_hash(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--name",
        "orders",
        "--tenant",
        "acme",
        "--scope",
        "bundles:read:flight",
        "--fields",
        "flight:id,plane.year",
    )
    assert run(["key", "new", *words]) == 0
    told = capsys.readouterr()
    key = told.out.strip()
    assert key.startswith("ctxpipe_") and key not in told.err
    assert stat.S_IMODE(FILE.stat().st_mode) == 0o600
    assert key.split("_", 2)[2] not in FILE.read_text()
    principal, _ = verify_key({one.id: one for one in read_keys(FILE).keys}, key, time.time())
    assert principal is not None and principal.tenant == "acme"
    assert principal.may("bundles:read", "flight") and not principal.may("bundles:read", "other")
    assert principal.fields == {"flight": ("id", "plane.year")}
    assert run(["key", "list"]) == 0
    listed = capsys.readouterr().out
    assert "usable" in listed and "orders" in listed and key not in listed and "digest" not in listed


def test_a_rotation_overlaps(capsys: pytest.CaptureFixture[str]) -> None:
    old = made(capsys, "--name", "orders", "--tenant", "acme", "--scope", "bundles:read", "--expires", "90d")
    new = made(capsys, "--replaces", old["id"], "--overlap", "1h")
    assert (new["name"], new["tenant"], new["scopes"], new["replaces"]) == (
        "orders",
        "acme",
        ["bundles:read"],
        old["id"],
    )
    assert new["expires"] is None
    now_s = time.time()
    assert [usable(one["key"]) for one in (old, new)] == [True, True]
    assert [usable(one["key"], now_s + 3700) for one in (old, new)] == [False, True]
    last = made(capsys, "--replaces", new["id"], "--overlap", "0s")
    assert [usable(one["key"]) for one in (old, new, last)] == [True, False, True]


def test_a_revoked_key_opens_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    key = made(capsys, "--name", "orders", "--scope", "metrics:read")
    assert run(["key", "revoke", key["id"]]) == 0
    assert not usable(key["key"])
    assert run(["key", "list", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["keys"]
    assert shown["state"] == "revoked" and shown["revoked"] is not None


def test_keys_made_at_once_are_all_there() -> None:
    words = ["key", "new", "--name", "n", "--scope", "metrics:read", "--file", str(FILE)]
    threads = [threading.Thread(target=lambda: run(words)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(FILE).keys) == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["new"], ["--name is missing", "--scope is missing"]),
        (["new", "--name", "a", "--scope", "bundle:read"], ["'bundle:read' is no scope; known are bundles:read"]),
        (["new", "--name", "a", "--scope", "bundles:read", "--expires", "soon"], ["'soon' is no duration"]),
        (["new", "--name", "a", "--scope", "bundles:read", "--fields", "id"], ["write CONTEXT:PATH,PATH"]),
        (["new", "--replaces", "0000"], ["no key '0000'"]),
        (["revoke", "0000"], ["no such file of keys", "ctxpipe key new"]),
        (["list"], ["no such file of keys"]),
    ],
)
def test_what_a_person_gets_wrong(words: list[str], told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["key", *words]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in told) and "Traceback" not in error
    assert not FILE.exists() or not read_keys(FILE).keys


def test_without_a_file_in_the_configuration(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "ctxpipe.yaml").write_text(CONFIG.replace("keys_file: secrets/keys.json", ""))
    assert run(["key", "list"]) == 2
    assert "access: {keys_file: keys.json}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no file of keys"),
        ("[]", "no file of keys"),
        ('{"keys":[{"id":"a","name":"n","digest":"short","created_s":1}]}', "no file of keys"),
        (
            '{"keys":[{"id":"a","name":"n","digest":"' + "0" * 64 + '","created_s":1,"scopes":["x"]}]}',
            "'x' is no scope",
        ),
        ("[" * 100_000, "no file of keys"),
        (
            '{"keys":[' + ",".join(['{"id":"a","name":"n","digest":"' + "0" * 64 + '","created_s":1}'] * 2) + "]}",
            "twice",
        ),
    ],
)
def test_a_broken_file(text: str, told: str) -> None:
    FILE.parent.mkdir()
    FILE.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_keys(FILE)
