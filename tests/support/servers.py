"""The real servers tests talk to: containers where a Docker engine answers, processes of the local stack elsewhere.

Both offer the same three addresses; nothing starts before a test asks for it. Servers that a test kills, pauses or
whose files it edits are always local processes, because such a test must reach the process and its files.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import psycopg
import yaml

from deploy.local import install
from deploy.local.kafka import KafkaServer, broker_answers
from deploy.local.postgres import PostgresServer
from deploy.local.processes import HOST, ProcessMark, choose_port, kill_tree
from deploy.local.redis import RedisCluster, RedisServer, ask
from tests.support.eventually import eventually_sync

COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"
ROOT_PREFIX = "ctxpipe-tests-"
OWNER_FILE = "owner.json"
# tests never lose power, so they need not wait for disks
FAST_POSTGRES = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}


class SharedServers(Protocol):
    """The addresses of one Kafka, one Postgres and one Redis for a whole test session; the first use starts them."""

    def kafka(self) -> str: ...

    def postgres(self) -> str:
        """The address of the superuser's database `postgres`."""
        ...

    def redis(self) -> str: ...

    def close(self) -> None: ...


class LocalRoot:
    """A temporary directory for local servers, ended and emptied with the session, or by the next one after a crash."""

    def __init__(self) -> None:
        end_orphans()
        self.path = Path(tempfile.mkdtemp(prefix=ROOT_PREFIX))
        self.path.chmod(0o755)  # Postgres runs as another user when we are root
        mark = ProcessMark.of(os.getpid())
        (self.path / OWNER_FILE).write_text(json.dumps({"pid": mark.pid, "started": mark.started}))
        self._count = 0

    def place(self, kind: str) -> dict[str, Any]:
        """Arguments for a new server of its own name, directory and port."""
        self._count += 1
        name = f"{kind}-{self._count}"
        return {
            "data_dir": self.path / name,
            "port": choose_port(),
            "name": name,
            "log_dir": self.path / "logs",
        }

    def close(self) -> None:
        _end_root(self.path)


class LocalServers:
    """Processes on this machine."""

    def __init__(self, root: LocalRoot) -> None:
        self._root = root

    @functools.cache  # noqa: B019 - one instance per session
    def kafka(self) -> str:
        install.ensure(["kafka"])
        return _started(KafkaServer(**self._root.place("kafka"))).address

    @functools.cache  # noqa: B019
    def postgres(self) -> str:
        install.ensure(["postgres"])
        return _started(PostgresServer(**self._root.place("postgres"), settings=FAST_POSTGRES)).address

    @functools.cache  # noqa: B019
    def redis(self) -> str:
        install.ensure(["redis"])
        return _started(RedisServer(**self._root.place("redis"), appendonly=False)).address

    def close(self) -> None:
        """The root ends them."""


class DockerServers:
    """Containers of the images, with the settings, that docker-compose.yml pins."""

    def __init__(self) -> None:
        self._running: list[Any] = []

    @functools.cache  # noqa: B019
    def kafka(self) -> str:
        port = choose_port()  # the broker announces the address that clients reach it by, so it is chosen beforehand
        container = self._container("kafka").with_bind_ports(29092, port)
        container.with_env("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9093")
        container.with_env("KAFKA_ADVERTISED_LISTENERS", f"PLAINTEXT://localhost:9092,HOST://{HOST}:{port}")
        container.start()
        eventually_sync(lambda: broker_answers(HOST, port), timeout_s=90, what="Kafka answers")
        return f"{HOST}:{port}"

    @functools.cache  # noqa: B019
    def postgres(self) -> str:
        container = self._container("postgres").with_exposed_ports(5432)
        password = _compose_service("postgres")["environment"]["POSTGRES_PASSWORD"]
        container.start()
        where = f"{container.get_container_host_ip()}:{container.get_exposed_port(5432)}"
        dsn = f"postgresql://postgres:{password}@{where}/postgres"

        def answers() -> bool:
            with psycopg.connect(dsn):
                return True

        eventually_sync(answers, timeout_s=90, what="Postgres answers", ignore=(psycopg.OperationalError,))
        return dsn

    @functools.cache  # noqa: B019
    def redis(self) -> str:
        container = self._container("redis").with_exposed_ports(6379)
        container.start()
        host, port = container.get_container_host_ip(), int(container.get_exposed_port(6379))
        eventually_sync(lambda: ask(host, port, "PING"), timeout_s=60, what="Redis answers", ignore=(OSError,))
        return f"redis://{host}:{port}/0"

    def close(self) -> None:
        for container in self._running:
            container.stop()

    def _container(self, name: str) -> Any:
        from testcontainers.core.container import DockerContainer

        service = _compose_service(name)
        container = DockerContainer(service["image"])
        for variable, value in service.get("environment", {}).items():
            container.with_env(variable, value)
        if "command" in service:
            container.with_command(service["command"])
        self._running.append(container)
        return container


def shared_servers(root: LocalRoot) -> SharedServers:
    """Containers where a Docker engine answers; CTXPIPE_TEST_SERVERS=local or =docker decides otherwise."""
    choice = os.environ.get("CTXPIPE_TEST_SERVERS") or ("docker" if docker_answers() else "local")
    if choice not in ("docker", "local"):
        raise ValueError(f"CTXPIPE_TEST_SERVERS is {choice!r}; it may be 'docker' or 'local'")
    return DockerServers() if choice == "docker" else LocalServers(root)


def docker_answers() -> bool:
    """True when a Docker engine answers (a client alone is not enough)."""
    if shutil.which("docker") is None:
        return False
    probe = ["docker", "version", "--format", "{{.Server.Version}}"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(probe, capture_output=True, check=False, timeout=10).returncode == 0
    return False


def _compose_service(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE_FILE.read_text())["services"][name])


@contextmanager
def fresh_database(admin_dsn: str, name: str) -> Iterator[str]:
    """A new empty database; it goes with its connections, replication slots and their owners at the end."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        try:
            yield f"{admin_dsn.rpartition('/')[0]}/{name}"
        finally:
            drop_database(admin, name)


def drop_database(admin: psycopg.Connection[Any], name: str) -> None:
    """End whoever uses the database, drop its replication slots, then the database."""
    admin.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s AND active", [name]
    )
    for _ in range(100):  # a walsender gives its slot up a moment after it was told to end
        slots = admin.execute("SELECT slot_name, active FROM pg_replication_slots WHERE database = %s", [name])
        left = slots.fetchall()
        if not left:
            break
        for slot, active in left:
            if not active:
                with contextlib.suppress(psycopg.Error):
                    admin.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        admin.execute("SELECT pg_sleep(0.05)")
    admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')  # type: ignore[arg-type]


def flush_redis(url: str) -> None:
    """Empty a Redis and take back what a test may have left switched."""
    parts = urlsplit(url)
    ask(parts.hostname or "127.0.0.1", parts.port or 6379, "FLUSHALL")


def flush_cluster(cluster: RedisCluster) -> None:
    for node in cluster.nodes:
        node.ask("FLUSHALL")


def end_orphans() -> None:
    """End what earlier test sessions left behind because they were killed; a session that still runs is left alone."""
    for root in Path(tempfile.gettempdir()).glob(f"{ROOT_PREFIX}*"):
        owner = _mark_in(root / OWNER_FILE)
        if owner is not None and not owner.alive():
            _end_root(root)


def _end_root(root: Path) -> None:
    for file in sorted(root.glob("**/*.process.json")):
        mark = _mark_in(file)
        if mark is not None:
            kill_tree(mark)
    if os.environ.get("CTXPIPE_TEST_KEEP") is None:
        shutil.rmtree(root, ignore_errors=True)


def _mark_in(file: Path) -> ProcessMark | None:
    try:
        return ProcessMark(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _started(server: Any) -> Any:
    server.start()
    return server
