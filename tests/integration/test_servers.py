"""The fixtures other tests stand on give real, separate, killable servers."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local.postgres import PostgresServer
from deploy.local.redis import RedisCluster, RedisServer
from tests.support.eventually import eventually_sync

pytestmark = pytest.mark.servers


def test_a_fresh_database_can_decode_its_log(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        connection.execute("SELECT pg_create_logical_replication_slot('left_behind_by_the_test', 'pgoutput')")
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (1,)


def test_each_test_gets_its_own_database(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        slots = connection.execute(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'left_behind_by_the_test'"
        )
        assert slots.fetchone() == (0,)
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert tables.fetchone() == (0,)


async def test_kafka_takes_and_gives_a_large_record(kafka_bootstrap: str) -> None:
    topic = "test-servers-large"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, max_request_size=32 * 1024 * 1024)
    await producer.start()
    await producer.send_and_wait(topic, b"x" * 20_000_000)
    await producer.stop()
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_bootstrap, group_id=None, fetch_max_bytes=32 * 1024 * 1024)
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.seek_to_beginning()
    record = await consumer.getone()
    await consumer.stop()
    assert len(record.value or b"") == 20_000_000


def test_redis_with_an_append_only_file_keeps_what_was_flushed(make_redis: Callable[..., RedisServer]) -> None:
    server = make_redis(appendonly=True, settings=["--appendfsync", "always"])
    server.ask("SET", "key", "kept")
    server.kill()
    assert not server.running()
    server.start()
    assert server.ask("GET", "key") == "kept"
    assert list(server.append_only_dir.glob("*.incr.aof"))


def test_a_paused_replica_lags_and_can_be_promoted(make_redis: Callable[..., RedisServer]) -> None:
    primary = make_redis(appendonly=False)
    replica = make_redis(appendonly=False, replica_of=("127.0.0.1", primary.port))
    primary.ask("SET", "key", "old")
    eventually_sync(lambda: replica.ask("GET", "key"), lambda value: value == "old")
    replica.pause()
    primary.ask("SET", "key", "new")
    primary.kill()
    replica.resume()
    replica.ask("REPLICAOF", "NO", "ONE")
    replica.ask("SET", "other", "written")
    assert replica.ask("GET", "other") == "written"


def test_a_cluster_serves_every_slot(redis_cluster: RedisCluster, redis_cluster_url: str) -> None:
    assert redis_cluster_url.startswith("redis://")
    for node in redis_cluster.nodes:
        assert "cluster_slots_ok:16384" in node.ask("CLUSTER", "INFO")


def test_postgres_comes_back_after_kill_9_with_its_data(make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres()
    with psycopg.connect(server.address, autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS id")
    server.kill()
    server.start()
    with psycopg.connect(server.address) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_postgres_with_a_password_refuses_a_wrong_one(make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres(password="right")
    with psycopg.connect(server.address) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.address.replace(":right@", ":wrong@"))
