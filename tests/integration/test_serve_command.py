"""What `ctxpipe serve` does before it answers and when it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy.local.roles import Role
from tests.integration.test_answer_commands import fill, write_config
from tests.support.eventually import eventually
from tests.support.running_pipeline import free_port

pytestmark = pytest.mark.servers

LOOK = """
import gc, json, sys, uvicorn
from pipeline import cli

async def look(self, sockets):
    print(json.dumps([gc.get_freeze_count(), len(gc.get_objects()), gc.isenabled()]))

uvicorn.Server.serve = look
sys.exit(cli.run(["serve", "--port", "0", "--config", sys.argv[1]]))
"""


async def test_what_lives_when_it_begins_to_answer_is_never_collected_again(tmp_path: Path, redis_url: str) -> None:
    await fill(redis_url, {1: "one"})
    config = write_config(tmp_path, redis_url, "postgresql://nobody@127.0.0.1:1/nothing")
    words = [sys.executable, "-c", LOOK, str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)  # noqa: ASYNC221 - nothing else
    assert done.returncode == 0, done.stderr
    frozen, looked_at, stops_by_itself = json.loads(done.stdout)
    assert frozen > 20_000 and looked_at < frozen / 20 and not stops_by_itself


async def test_it_closes_what_it_opened_when_it_is_asked_to_end(tmp_path: Path, redis_url: str) -> None:
    await fill(redis_url, {1: "one"})
    config = write_config(tmp_path, redis_url, "postgresql://nobody@127.0.0.1:1/nothing")
    port = free_port()
    words = ["serve", "--port", str(port), "--config", str(config)]
    role = Role(words, tmp_path / "serve.log", {"PYTHONPATH": os.getcwd()}).start()
    try:
        async with httpx.AsyncClient() as client:
            ready = await eventually(lambda: client.get(f"http://127.0.0.1:{port}/readyz"), ignore=(httpx.HTTPError,))
        assert ready.status_code == 200
    finally:
        code = role.stop()
    assert code == 0, "a signal's own code would tell that nothing was closed"
    assert f"a page for people on http://127.0.0.1:{port}/" in role.log_file.read_text()
