"""`ctxpipe mcp` as typed, where access is configured: over a port with a key, over standard input as before."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from deploy.local.roles import Role
from pipeline.lookup.api_keys import KeyList, StoredKey, make_key, write_keys
from tests.integration.test_answer_commands import fill, run, write_config
from tests.support.eventually import eventually
from tests.support.running_pipeline import free_port

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]


@pytest.fixture
async def config_path(tmp_path: Path, redis_url: str) -> Path:
    await fill(redis_url, {1: "one", 2: "two"})
    path = write_config(tmp_path, redis_url, "postgresql://nobody@127.0.0.1:1/nothing")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"access": {"keys_file": "keys.json"}}))
    return path


async def bundle(client: Client) -> Any:
    answer: Any = await client.call_tool("get_context_bundle", {"context": "thing", "key": "1"})
    return answer.structured_content["bundle"]


async def test_a_port_asks_for_the_keys_of_serve(config_path: Path) -> None:
    key_id, key, digest = make_key()
    kept = StoredKey(id=key_id, name="model", digest=digest, created_s=1, scopes=("bundles:read",))
    write_keys(config_path.with_name("keys.json"), KeyList((kept,)))
    port = free_port()
    words = ["mcp", "--port", str(port), "--config", str(config_path)]
    role = Role(words, config_path.with_name("mcp.log"), {"PYTHONPATH": os.getcwd()}).start()
    url = f"http://127.0.0.1:{port}/mcp"
    try:
        async with httpx2.AsyncClient() as stranger:
            refused = await eventually(lambda: stranger.get(url), timeout_s=60, ignore=(httpx2.HTTPError,))
            assert refused.status_code == 401
        async with (
            httpx2.AsyncClient(headers={"x-api-key": key}) as connection,
            Client(streamable_http_client(url, http_client=connection)) as client,
        ):
            assert await bundle(client) == {"id": 1, "name": "one"}
    finally:
        code = role.stop()
    assert code == 0, role.tail()
    assert f"http://127.0.0.1:{port}/mcp" in role.log_file.read_text() and key not in role.log_file.read_text()


async def test_standard_input_is_whoever_started_it(config_path: Path) -> None:
    write_keys(config_path.with_name("keys.json"), KeyList())
    words = ["-m", "pipeline.cli", "mcp", "--config", str(config_path)]
    async with Client(StdioServerParameters(command=sys.executable, args=words, cwd=os.getcwd())) as client:
        assert await bundle(client) == {"id": 1, "name": "one"}


def test_a_port_that_is_taken_and_keys_that_are_not_there_are_one_message(config_path: Path, capsys: Any) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        code, _, told = run(capsys, "mcp", "--port", port, "--config", str(config_path))
        assert code == 3 and f"can't listen on 127.0.0.1 port {port}" in told
    code, _, told = run(capsys, "mcp", "--port", port, "--config", str(config_path))
    assert code == 2 and "keys.json" in told
