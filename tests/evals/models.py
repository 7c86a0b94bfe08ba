"""The models that are recorded, at the addresses of guard.yaml: two scripted providers and the real quantised model."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from deploy.local.model_server import ModelServer
from tests.evals.scripted_model import application

SCRIPTED_PORT, LOCAL_PORT = 18431, 18432
_HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[None]:
    """Raises EnvironmentProblem where llama.cpp's server can't be built or started, OSError for a port in use."""
    runner = web.AppRunner(application())
    await runner.setup()
    with tempfile.TemporaryDirectory() as folder:
        server = ModelServer(Path(folder), LOCAL_PORT)
        try:
            await web.TCPSite(runner, _HOST, SCRIPTED_PORT).start()
            sys.stderr.write("starting llama.cpp's server\n")
            server.start()
            yield
        finally:
            server.stop()
            await runner.cleanup()


async def _serve() -> None:
    async with listening():
        sys.stderr.write(f"the models of guard.yaml listen on {SCRIPTED_PORT} and {LOCAL_PORT}; Ctrl-C ends them\n")
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve())
