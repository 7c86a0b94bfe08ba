"""Writes a heartbeat into the source's log about every second: when it comes out again, all before it has been read."""

from __future__ import annotations

import asyncio
import logging

from connectors.postgres.catalog import Catalog
from connectors.postgres.server import Server
from pipeline.core.errors import Retryable
from schemas.topics import HEARTBEAT_PREFIX

log = logging.getLogger(__name__)

_EMIT = """
SELECT pg_logical_emit_message(false, %s, json_build_object('source', %s::text,
  'ts_us', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)::text)
"""
"""The server's clock is read before the message is written: what was committed by then lies before it in the log."""


async def beat(server: Server, source: str, interval_s: float) -> None:
    """Runs until cancelled, over a connection of its own. A server that is away for a moment only delays the next."""
    catalog = Catalog(server)
    try:
        while True:
            try:
                await catalog.rows(_EMIT, HEARTBEAT_PREFIX, source)
            except Retryable as error:
                log.warning("no heartbeat: %s", error)
            await asyncio.sleep(interval_s)
    finally:
        await catalog.close()
