"""The choice between containers and local processes, with the Docker client replaced by a recorder."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.support import servers
from tests.support.servers import DockerServers, LocalRoot, LocalServers, docker_answers, shared_servers


class Recorder:
    """Stands in for testcontainers' DockerContainer."""

    made: list[Recorder]

    def __init__(self, image: str) -> None:
        self.image = image
        self.environment: dict[str, str] = {}
        self.command: Any = None
        self.bound: tuple[int, int] | None = None
        self.started = self.stopped = False
        self.made.append(self)

    def with_env(self, name: str, value: str) -> Recorder:
        self.environment[name] = value
        return self

    def with_command(self, command: Any) -> Recorder:
        self.command = command
        return self

    def with_bind_ports(self, inside: int, outside: int) -> Recorder:
        self.bound = (inside, outside)
        return self

    def with_exposed_ports(self, port: int) -> Recorder:
        self.bound = (port, 45_000)
        return self

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.stopped = True

    def get_container_host_ip(self) -> str:
        return "127.0.0.1"

    def get_exposed_port(self, _port: int) -> str:
        return "45000"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.made = []
    monkeypatch.setattr("testcontainers.core.container.DockerContainer", Recorder)
    monkeypatch.setattr(servers, "broker_answers", lambda _host, _port: True)
    monkeypatch.setattr(servers, "ask", lambda *_words: "PONG")
    return Recorder


@pytest.mark.parametrize(("engine", "expected"), [(True, DockerServers), (False, LocalServers)])
def test_an_answering_engine_decides(engine: bool, expected: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CTXPIPE_TEST_SERVERS", raising=False)
    monkeypatch.setattr(servers, "docker_answers", lambda: engine)
    assert isinstance(shared_servers(cast(LocalRoot, None)), expected)


def test_a_person_may_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTXPIPE_TEST_SERVERS", "docker")
    assert isinstance(shared_servers(cast(LocalRoot, None)), DockerServers)
    monkeypatch.setenv("CTXPIPE_TEST_SERVERS", "podman")
    with pytest.raises(ValueError, match="may be 'docker' or 'local'"):
        shared_servers(cast(LocalRoot, None))


def test_a_client_without_an_engine_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert docker_answers() is False
    client.write_text("#!/bin/sh\necho 28.0\n")
    assert docker_answers() is True


def test_containers_get_the_pinned_images_and_settings(recorder: type[Recorder]) -> None:
    shared = DockerServers()
    address = shared.kafka()
    assert shared.kafka() == address, "a second use starts no second broker"
    assert shared.redis() == "redis://127.0.0.1:45000/0"
    kafka, redis = recorder.made
    assert kafka.image.startswith("apache/kafka:")
    assert kafka.environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert address in kafka.environment["KAFKA_ADVERTISED_LISTENERS"]
    assert kafka.bound == (29092, int(address.rpartition(":")[2]))
    assert "--appendonly" in redis.command
    shared.close()
    assert all(container.started and container.stopped for container in recorder.made)
