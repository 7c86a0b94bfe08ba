"""An application behind a real uvicorn on a free port, as `serve` runs one: its connections are seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import uvicorn


@contextlib.asynccontextmanager
async def serving(app: Any, protocol: Any, **options: Any) -> AsyncIterator[int]:
    """Its port. `options` are uvicorn's."""
    settings: dict[str, Any] = {"port": 0, "lifespan": "off", "log_level": "critical", "access_log": False}
    settings["proxy_headers"] = False
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, **settings | options))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task
