"""The Postgres source on a real server, in the conformance kit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from connectors.conformance.suite import SourceSuite
from deploy.local.postgres import PostgresServer
from tests.support.postgres_conformance import PostgresConformance, RestartedPostgres, SkippedPostgres

pytestmark = pytest.mark.servers


class TestPostgres(SourceSuite):
    harness_type = PostgresConformance

    @pytest.fixture
    async def harness(self, postgres_dsn: str) -> AsyncIterator[PostgresConformance]:
        async with PostgresConformance(postgres_dsn) as harness:
            yield harness


class TestSkippedPostgres(SourceSuite):
    harness_type = SkippedPostgres
    only = ("test_a_lost_position_is_refused",)

    @pytest.fixture
    async def harness(self, postgres_dsn: str) -> AsyncIterator[SkippedPostgres]:
        async with SkippedPostgres(postgres_dsn) as harness:
            yield harness


class TestRestartedPostgres(SourceSuite):
    harness_type = RestartedPostgres
    only = ("test_a_restarted_server_is_found_again",)

    @pytest.fixture
    async def harness(self, make_postgres: Callable[..., PostgresServer]) -> AsyncIterator[RestartedPostgres]:
        async with RestartedPostgres(make_postgres) as harness:
            yield harness
