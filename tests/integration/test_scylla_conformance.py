"""The Scylla source passes the conformance kit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from connectors.conformance.suite import SourceSuite
from deploy.local.cassandra import CassandraServer
from tests.support.cassandra import start_cassandra
from tests.support.scylla import scylla_table
from tests.support.scylla_conformance import COLUMNS, CONFIDENCE_S, RestartedScylla, ScyllaConformance
from tests.support.servers import LocalRoot

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def roomy_cassandra(local_root: LocalRoot) -> Iterator[CassandraServer]:
    """One that takes rows of 10 MB, and may be restarted."""
    server = start_cassandra(local_root, settings={"commitlog_segment_size": "64MiB"})
    yield server
    server.kill()
    server.remove_data()


class TestScylla(SourceSuite):
    harness_type = ScyllaConformance

    @pytest.fixture
    async def harness(self, roomy_cassandra: CassandraServer) -> AsyncIterator[ScyllaConformance]:
        settings = {"snapshot": "initial", "snapshot_ranges": 8, "page_rows": 100, "confidence_window_s": CONFIDENCE_S}
        async with scylla_table(roomy_cassandra, COLUMNS, ring=(1, 1), **settings) as made:
            yield self.harness_type(made, roomy_cassandra)


class TestRestartedScylla(TestScylla):
    harness_type = RestartedScylla
    only = ("test_a_restarted_server_is_found_again",)
