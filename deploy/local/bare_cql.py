"""The bare Cassandra driver, for measurements: rows written together, and read as any application reads them.

All calls block; run them in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.concurrent import execute_concurrent_with_args
from cassandra.policies import RoundRobinPolicy
from cassandra.query import SimpleStatement

TOGETHER = 64
CHUNK_ROWS = 2_000
PAGE_ROWS = 1_000


def insert(address: str, statement: str, rows: Sequence[Sequence[Any]], tick: Callable[[int], None]) -> None:
    """`statement` has a `?` for each value of a row. `tick` is told how many rows have been written."""
    with _session(address) as session:
        prepared = session.prepare(statement)
        for first in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[first : first + CHUNK_ROWS]
            execute_concurrent_with_args(session, prepared, chunk, concurrency=TOGETHER)
            tick(first + len(chunk))


def read_all(address: str, query: str) -> tuple[int, float]:
    """Rows of an answer, page by page, and the seconds that it took to have them as Python values."""
    with _session(address) as session:
        began = time.perf_counter()
        count = sum(1 for _ in session.execute(SimpleStatement(query, fetch_size=PAGE_ROWS)))
        return count, time.perf_counter() - began


@contextmanager
def _session(address: str) -> Iterator[Any]:
    host, _, port = address.rpartition(":")
    profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), request_timeout=60)
    cluster = Cluster(
        [host], port=int(port), protocol_version=5, execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        schema_metadata_enabled=False, schema_event_refresh_window=-1,
    )  # fmt: skip
    try:
        yield cluster.connect()
    finally:
        cluster.shutdown()
