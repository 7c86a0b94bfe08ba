"""The Cassandra source passes the conformance kit: its snapshot as a source, its stream by the topics it fills."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from connectors.conformance.suite import SourceSuite
from connectors.conformance.topics_suite import TopicsSuite
from deploy.local.cassandra import CassandraServer
from tests.support.cassandra import start_cassandra
from tests.support.cassandra_conformance import CassandraConformance, RestartedCassandra
from tests.support.cassandra_table import ROOMY
from tests.support.cassandra_topics import CassandraTopics, Deployment
from tests.support.servers import LocalRoot

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def roomy_cassandra(local_root: LocalRoot) -> Iterator[CassandraServer]:
    """One that takes rows of 10 MB, and may be restarted."""
    server = start_cassandra(local_root, settings=ROOMY)
    yield server
    server.kill()
    server.remove_data()


@pytest.fixture(scope="module", autouse=True)
def quick_java() -> Iterator[None]:
    """Sidecars that live for seconds spend them on compiling otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
        yield


@pytest.fixture(scope="module")
def deployment(
    roomy_cassandra: CassandraServer, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    made = Deployment(roomy_cassandra, kafka_bootstrap, tmp_path_factory.mktemp("connect"))
    yield made
    made.end(signal.SIGTERM)


class TestCassandra(SourceSuite):
    harness_type = CassandraConformance

    @pytest.fixture
    async def harness(self, roomy_cassandra: CassandraServer, tmp_path: Path) -> AsyncIterator[CassandraConformance]:
        async with self.harness_type(roomy_cassandra, tmp_path) as harness:
            yield harness


class TestRestartedCassandra(TestCassandra):
    """Before the deployment below runs: two sidecars on one node take the segments from each other."""

    harness_type = RestartedCassandra
    only = ("test_a_restarted_server_is_found_again",)


class TestCassandraTopics(TopicsSuite):
    harness_type = CassandraTopics

    @pytest.fixture
    async def harness(self, deployment: Deployment) -> AsyncIterator[CassandraTopics]:
        async with CassandraTopics(deployment) as harness:
            yield harness
