"""The Postgres source on a real server: the suite of every source."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conformance.source_suite import SourceSuite
from tests.support.postgres_source import PostgresHarness

pytestmark = pytest.mark.servers


class TestPostgresSource(SourceSuite):
    @pytest.fixture
    async def harness(self, postgres_dsn: str) -> AsyncIterator[PostgresHarness]:
        async with PostgresHarness(postgres_dsn) as harness:
            yield harness
