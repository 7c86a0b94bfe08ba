"""Fixtures for every test; the servers behind them start when the first test asks for them."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.local import install
from deploy.local.cassandra import CassandraServer
from deploy.local.kafka import KafkaServer
from deploy.local.postgres import PostgresServer
from deploy.local.redis import RedisCluster, RedisServer
from tests.support.cassandra import start_cassandra
from tests.support.servers import (
    FAST_POSTGRES,
    LocalRoot,
    SharedServers,
    flush_cluster,
    flush_redis,
    fresh_database,
    shared_servers,
)

_database_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """The fixture conformance_kafka below is ours: the kit needs to look for none."""
    config.option.conformance_kafka = "own"


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in its background, and all that tests start would never hear of Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def local_root() -> Iterator[LocalRoot]:
    """A directory for local server processes; all of them end with the session."""
    root = LocalRoot()
    yield root
    root.close()


@pytest.fixture(scope="session")
def servers(local_root: LocalRoot) -> Iterator[SharedServers]:
    """One Kafka, one Postgres, one Redis for the session; each starts at its first use."""
    shared = shared_servers(local_root)
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def kafka_bootstrap(servers: SharedServers) -> str:
    """host:port of the shared Kafka. Topics are not created by themselves; take names of your own."""
    return servers.kafka()


@pytest.fixture(scope="session")
def conformance_kafka(kafka_bootstrap: str) -> str:
    """The conformance kit takes the shared Kafka, too."""
    return kafka_bootstrap


@pytest.fixture(scope="session")
def postgres_server(servers: SharedServers) -> str:
    """The superuser's address of the shared Postgres; most tests want `postgres_dsn`."""
    return servers.postgres()


@pytest.fixture
def postgres_dsn(postgres_server: str) -> Iterator[str]:
    """A fresh database; dropped after the test with its connections and replication slots."""
    with fresh_database(postgres_server, f"test_{os.getpid()}_{next(_database_numbers)}") as dsn:
        yield dsn


@pytest.fixture(scope="session")
def cassandra_server(local_root: LocalRoot) -> CassandraServer:
    """The shared Cassandra 5; take keyspaces of your own (tests.support.cassandra.fresh_keyspace)."""
    return start_cassandra(local_root)


@pytest.fixture
def redis_url(servers: SharedServers) -> str:
    """The shared Redis, emptied; it keeps no file."""
    url = servers.redis()
    flush_redis(url)
    return url


@pytest.fixture(scope="session")
def redis_cluster(local_root: LocalRoot) -> Iterator[RedisCluster]:
    """A Redis Cluster of three local nodes."""
    install.ensure(["redis"])
    cluster = RedisCluster(local_root.path / "redis-cluster", log_dir=local_root.path / "logs")
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    """The address of one node of the cluster; all nodes emptied."""
    flush_cluster(redis_cluster)
    return redis_cluster.address


@pytest.fixture
def make_redis(local_root: LocalRoot) -> Iterator[Callable[..., RedisServer]]:
    """Starts Redis servers of the test's own: make_redis(appendonly=True, replica_of=(host, port), password=None)."""
    install.ensure(["redis"])
    yield from _factory(lambda **options: RedisServer(**local_root.place("own-redis"), **options))


@pytest.fixture
def make_kafka(local_root: LocalRoot) -> Iterator[Callable[..., KafkaServer]]:
    """Starts Kafka brokers of the test's own: make_kafka(settings={...})."""
    install.ensure(["kafka"])
    yield from _factory(lambda **options: KafkaServer(**local_root.place("own-kafka"), heap_mib=384, **options))


@pytest.fixture
def make_postgres(local_root: LocalRoot) -> Iterator[Callable[..., PostgresServer]]:
    """Starts Postgres servers of the test's own: make_postgres(password="…", settings={...})."""
    install.ensure(["postgres"])

    def build(**options: Any) -> PostgresServer:
        settings = {**FAST_POSTGRES, **options.pop("settings", {})}
        return PostgresServer(**local_root.place("own-postgres"), settings=settings, **options)

    yield from _factory(build)


def _factory(build: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Start what the test asks for and end it afterwards; the test may kill, pause and restart it in between."""
    started = []

    def make(**options: Any) -> Any:
        server = build(**options)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.resume()
        server.kill()
        server.remove_data()
