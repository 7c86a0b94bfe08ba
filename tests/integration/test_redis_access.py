"""A Redis with TLS and users of its own: who may read only, who is refused, whom we don't trust."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands._check_redis import check_redis
from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.core.redis import RedisConfig
from pipeline.stores.redis_client import RedisClient, RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey
from tests.support.certificates import Authority, make_authority
from tests.support.secured_servers import secured_redis

pytestmark = pytest.mark.servers

# As the documentation gives them.
READER = [
    "reader", "on", ">read: only/€@", "resetchannels", "-@all", "%R~ctxpipe:*", "+@read", "-@dangerous",
    "+fcall_ro", "+ping", "+hello", "+select",
]  # fmt: skip
WRITER = [
    "writer", "on", ">writes", "resetchannels", "-@all", "~ctxpipe:*", "+@read", "+@write", "-@dangerous",
    "+fcall", "+fcall_ro", "+function|load", "+eval", "+info", "+time", "+ping", "+hello", "+select",
]  # fmt: skip


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def secured(authority: Authority, make_redis: Callable[..., Any]) -> tuple[Any, int]:
    return secured_redis(make_redis, authority, READER, WRITER)


def config(authority: Authority, port: int, **more: Any) -> RedisConfig:
    if not (authority.folder / "client.pem").exists():
        authority.issue("client", "DNS:client")
    files = {"ca": "ca.pem", "certificate": "client.pem", "key": "client.key"}
    made = RedisConfig.model_validate({"url": f"rediss://127.0.0.1:{port}/0", **files, **more})
    made._folder = authority.folder
    return made


def settings(redis: RedisConfig) -> RedisSettings:
    return RedisSettings(redis.url, "plane", 1, timeout_s=3.0, login=redis)


WROTE = {"username": "writer", "password": "writes"}
READS = {"username": "reader", "password": "read: only/€@"}
KEY = UnitKey(ROOT_UNIT, "7")


async def bundle(stores: Stores) -> bytes | None:
    (fetched,) = await stores.reader.fetch(["7"])
    return None if fetched.bundle is None else fetched.bundle.body


async def test_a_reader_reads_over_tls_and_writes_nothing(authority: Authority, secured: tuple[Any, int]) -> None:
    _, port = secured
    with pytest.raises(EnvironmentProblem, match="Start a worker first"):
        await open_stores(settings(config(authority, port, **READS)))
    writing = await open_stores(settings(config(authority, port, **WROTE)))
    body = b'{"id":7,"text":"%b"}' % (b"x" * 3_000_000)
    await writing.bundles.put([(KEY, Stored(1, Meta("h", 1), body))])
    reading = await open_stores(settings(config(authority, port, **READS)))
    assert await bundle(writing) == await bundle(reading) == body, "large answers cross TLS whole"
    assert await reading.serving.current() is None and dict(await reading.reader.read_applied()) == {}
    with pytest.raises(EnvironmentProblem, match="refuses the login or a command"):
        await reading.bundles.put([(KEY, Stored(2, Meta("h", 1), b"{}"))])
    assert await bundle(reading) == body
    assert check_redis(config(authority, port, **READS)).severity == "ok"
    for stores in (writing, reading):
        await stores.close()


async def refused(redis: RedisConfig) -> str:
    client = RedisClient(settings(redis))
    try:
        with pytest.raises(EnvironmentProblem) as error:
            await client.run("PING")
    finally:
        await client.close()
    return str(error.value)


async def test_who_is_wrong_is_told_so(authority: Authority, secured: tuple[Any, int], tmp_path: Path) -> None:
    server, port = secured
    wrong = config(authority, port, username="reader", password="wrong")
    assert "refuses the login" in await refused(wrong)
    assert check_redis(wrong).severity == "unreachable" and "WRONGPASS" in check_redis(wrong).message
    (tmp_path / "other").mkdir()
    make_authority(tmp_path / "other")
    stranger = config(authority, port, **READS, ca=str(tmp_path / "other" / "ca.pem"))
    assert "don't trust each other" in await refused(stranger)
    assert "redis.ca" in check_redis(stranger).mend
    plain = RedisConfig.model_validate({"url": f"redis://127.0.0.1:{server.port}/0", **READS})
    assert check_redis(plain).severity == "ok", "users work without TLS as well"


async def test_files_that_are_none(authority: Authority, secured: tuple[Any, int]) -> None:
    _, port = secured
    for files in ({"ca": "no.pem"}, {"certificate": "client.pem", "key": "redis.key"}, {"ca": "client.key"}):
        made = config(authority, port, **READS, **files)
        with pytest.raises(ConfigError, match="can't be used"):
            RedisClient(settings(made))
        assert check_redis(made).severity == "unfit"


def test_the_server_speaks_tls(authority: Authority, secured: tuple[Any, int]) -> None:
    """So that the tests above test what they say."""
    words = ["openssl", "s_client", "-connect", f"127.0.0.1:{secured[1]}", "-CAfile", str(authority.certificate)]
    shown = subprocess.run(words, input=b"", capture_output=True, timeout=30)
    assert b"Verify return code: 0 (ok)" in shown.stdout
