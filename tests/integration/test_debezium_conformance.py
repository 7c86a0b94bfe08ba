"""Topics that a real Kafka Connect with Debezium fills pass the kit's suite of topics, with schemas and without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from connectors.conformance.topics_suite import TopicsSuite
from deploy.local import install
from deploy.local.connect import ConnectServer
from deploy.local.postgres import PostgresServer
from tests.support.debezium_conformance import DebeziumConformance, DebeziumWithSchemas, RestartedDebezium
from tests.support.servers import LocalRoot

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def connect(local_root: LocalRoot, kafka_bootstrap: str) -> Iterator[ConnectServer]:
    """One for the module; tests add connectors to it and take them away."""
    install.ensure(["kafka"])
    server = ConnectServer(**local_root.place("connect"), kafka=kafka_bootstrap, connectors={})
    server.start()
    yield server
    server.kill()
    server.remove_data()


class TestDebezium(TopicsSuite):
    harness_type = DebeziumConformance

    @pytest.fixture
    async def harness(
        self, postgres_dsn: str, connect: ConnectServer, tmp_path: Path, kafka_bootstrap: str, redis_url: str
    ) -> AsyncIterator[DebeziumConformance]:
        async with self.harness_type(postgres_dsn, connect, tmp_path, kafka_bootstrap, redis_url) as harness:
            yield harness


class TestDebeziumWithSchemas(TestDebezium):
    """What differs: how values, keys and nulls are spelled."""

    harness_type = DebeziumWithSchemas
    only = (
        "test_the_golden_table_of_types",
        "test_null_absent_and_unavailable_are_three_things",
        "test_a_changed_key_leaves_nothing_under_the_old_one",
        "test_a_tombstone_follows_a_delete",
        "test_a_truncate_empties_the_table",
        "test_a_table_may_change_under_way",
        "test_check_finds_a_fit_deployment_fit",
        "test_a_large_row",
    )


class TestRestartedDebezium(TestDebezium):
    harness_type = RestartedDebezium
    only = ("test_a_restarted_server_is_found_again",)

    @pytest.fixture
    async def harness(
        self,
        make_postgres: Callable[..., PostgresServer],
        connect: ConnectServer,
        tmp_path: Path,
        kafka_bootstrap: str,
        redis_url: str,
    ) -> AsyncIterator[RestartedDebezium]:
        server = make_postgres()
        async with RestartedDebezium(server.address, connect, tmp_path, kafka_bootstrap, redis_url) as harness:
            harness.server = server
            yield harness
