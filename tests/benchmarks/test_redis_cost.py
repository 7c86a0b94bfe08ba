"""What `ctxpipe plan` takes a Redis to cost is measured small with the tests; figures are printed, never asserted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploy.local.redis import RedisServer
from tests.benchmarks.redis_cost import measure

pytestmark = [pytest.mark.servers, pytest.mark.timeout(200)]


async def test_rows_bundles_changes_and_lookups_cost_something(make_redis: Callable[..., RedisServer]) -> None:
    found = await measure(make_redis().address, 500)
    print(found)
    assert found["rows"] > 500
    assert found["bundles_and_fragments"] > 500
    assert min(found.values()) > 0
