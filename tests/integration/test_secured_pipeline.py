"""Everything locked at once: Postgres → Kafka with a login over TLS → Redis with users over TLS → lookups over TLS with
keys, tenants apart. And who has the wrong login is told so."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from connectors.cassandra.properties import properties_text
from connectors.publisher import check_kafka
from deploy.local import install
from pipeline.commands._sources import kafka_settings
from pipeline.core.config import Config, load
from pipeline.core.errors import CtxpipeError
from pipeline.core.kafka import KafkaConfig
from tests.conftest import _factory
from tests.integration.test_redis_access import WRITER
from tests.support.certificates import Authority, make_authority
from tests.support.eventually import eventually
from tests.support.running_pipeline import RunningPipeline, free_port
from tests.support.secured_servers import KAFKA_PASSWORD, SecuredKafka, secured_redis
from tests.support.servers import LocalRoot

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

SQL = """
CREATE TABLE items (id int PRIMARY KEY, owner text, label text);
INSERT INTO items VALUES (1, 'acme', 'one'), (2, 'globex', 'two'), (3, NULL, 'three');
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def kafka(authority: Authority, local_root: LocalRoot) -> Iterator[SecuredKafka]:
    install.ensure(["kafka"])
    places = iter(range(1))
    for make in _factory(lambda: SecuredKafka(authority, **local_root.place("own-kafka"), heap_mib=384)):
        assert next(places) == 0
        yield make()


@pytest.fixture
def pipeline(
    tmp_path: Path, authority: Authority, kafka: SecuredKafka, make_redis: Callable[..., Any], postgres_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RunningPipeline]:  # fmt: skip
    """Its secrets come from files that the environment names."""
    for name, secret in (("KAFKA_PASSWORD", KAFKA_PASSWORD), ("REDIS_PASSWORD", "writes")):
        (tmp_path / name).write_text(secret)
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    _, redis_port = secured_redis(make_redis, authority, WRITER)
    authority.issue("client", "DNS:client")
    authority.issue("serve", "IP:127.0.0.1")
    made = RunningPipeline(
        tmp_path, kafka.secured_address, f"rediss://127.0.0.1:{redis_port}/0", postgres_dsn, SQL, ["items"]
    )
    made.config["kafka"] = {**kafka.client(), "sasl.password": "${KAFKA_PASSWORD}", "partitions": 2}
    made.config["redis"] |= {"username": "writer", "password": "${REDIS_PASSWORD}"}
    made.config["redis"] |= {"ca": "ca.pem", "certificate": "client.pem", "key": "client.key"}
    made.config["access"] = {"keys_file": "keys.json"}
    made.config["serve"] = {"tls": {"certificate": "serve.pem", "key": "serve.key"}}
    made.write_config()
    made.write_file("context.yaml", spec(made))
    yield made
    made.stop()


def spec(pipeline: RunningPipeline) -> dict[str, Any]:
    return {
        "context": pipeline.context,
        "version": 1,
        "root": "item",
        "entities": {"item": {"source": pipeline.source, "table": "public.items", "key": ["id"]}},
        "fields": ["id", "label"],
        "tenant": "owner",
        "serving": {"budget_ms": 10_000, "max_age_ms": 60_000},
    }


async def test_a_pipeline_whose_every_door_is_locked(pipeline: RunningPipeline, authority: Authority) -> None:
    key = (await pipeline.result("key", "new", "--name", "orders", "--tenant", "acme", "--scope", "bundles:read"))[
        "key"
    ]
    port = free_port()
    checked = await pipeline.result("check")
    assert not [one for one in checked["findings"] if one["severity"] in ("unfit", "unreachable")], checked
    pipeline.role("connect", pipeline.source)
    pipeline.role("worker")
    pipeline.role("serve", "--host", "127.0.0.1", "--port", str(port))
    trusted = ssl.create_default_context(cafile=str(authority.certificate))
    async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trusted, timeout=20) as client:

        async def status(item: int, credential: str = key) -> int:
            for role in pipeline.roles:
                role.ensure_running()
            try:
                path = f"/v1/contexts/{pipeline.context}/{item}"
                return (await client.get(path, headers={"authorization": f"Bearer {credential}"})).status_code
            except httpx.TransportError:
                return 0

        await eventually(lambda: status(1), lambda seen: seen == 200, timeout_s=150, what="the bundle of item 1")
        assert [await status(item) for item in (2, 3, 4)] == [404, 404, 404], "another's, nobody's, and none at all"
        assert await status(1, key[:-1]) == 401
        assert "strict-transport-security" in (await client.get("/livez")).headers
    log = pipeline.roles[-1].log_file.read_text()
    assert '"logger": "ctxpipe.audit"' in log and '"outcome": "unauthenticated"' in log and '"tenant": "acme"' in log
    logs = "".join(role.log_file.read_text() for role in pipeline.roles)
    assert key.split("_", 2)[2] not in logs and KAFKA_PASSWORD not in logs


async def test_a_wrong_login_is_told_so(kafka: SecuredKafka, authority: Authority, tmp_path: Path) -> None:
    def config(**more: str) -> Config:
        path = tmp_path / "other.yaml"
        lines = "".join(f"  {name}: {value!r}\n" for name, value in {**kafka.client(), **more}.items())
        path.write_text(f'redis: {{url: "redis://127.0.0.1:6379/0"}}\nkafka:\n{lines}')
        return load(path)

    async def told(**more: str) -> str:
        try:
            findings = await check_kafka(kafka_settings(config(**more)), [], [])
        except CtxpipeError as error:
            return str(error)
        return "; ".join(finding.message for finding in findings)

    assert (await told()).endswith(" answers")
    assert "login" in await told(**{"sasl.password": "wrong"})
    (tmp_path / "elsewhere").mkdir()
    stranger = make_authority(tmp_path / "elsewhere").certificate
    assert "login" in await told(**{"ssl.ca.location": str(stranger)})


def test_javas_client_takes_the_same(kafka: SecuredKafka, tmp_path: Path) -> None:
    """The sidecar of Cassandra's connector is one of them."""
    section = {"bootstrap.servers": kafka.secured_address, **kafka.client()}
    settings = KafkaConfig.model_validate(section).java
    (tmp_path / "client.properties").write_text(properties_text(settings))
    words = [
        install.java_program(),
        "-Xmx128m",
        "-cp",
        f"{install.jars('kafka')}/*",
        "kafka.admin.ConfigCommand",
    ]
    words += ["--bootstrap-server", kafka.secured_address, "--entity-type", "topics", "--describe"]
    words += ["--command-config", str(tmp_path / "client.properties")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
