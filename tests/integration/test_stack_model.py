"""`ctxpipe up --with llm`, as a person uses it: the local rung is there without a url, and goes with the stack."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from deploy.local import install as programs
from deploy.local import model_server
from deploy.local.stack import Stack
from pipeline.client.guarding import open_guard
from pipeline.core.config import STATE_FILE
from pipeline.core.errors import EnvironmentProblem
from pipeline.guard.output import of_model
from pipeline.guard.values import ModelRequest
from tests.support.cli import ctxpipe
from tests.support.servers import LocalRoot

BUILT = pytest.mark.skipif(
    not model_server.installed(), reason="build it once with python -m deploy.local.model_server (some minutes)"
)


class Decision(BaseModel):
    """Its form has to hold; what the tiny model says means nothing."""

    model_config = ConfigDict(extra="forbid")
    wait: bool


@pytest.fixture
def folder(local_root: LocalRoot, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = local_root.path / request.node.name
    path.mkdir()
    yield path
    Stack(path / STATE_FILE.parent).down()


@BUILT
@pytest.mark.servers
async def test_the_local_rung_comes_up_and_goes_down_with_the_stack(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = ctxpipe("up", "--with", "llm", "--json", folder=folder, timeout_s=300)
    assert up.code == 0, up.err
    assert {name: server["state"] for name, server in up.lines()[0]["servers"].items()} == {
        "kafka": "up", "postgres": "up", "redis": "up", "llm": "up",
    }  # fmt: skip
    (folder / "ctxpipe.yaml").write_text(
        "guard:\n"
        "  endpoints:\n"
        "    - {name: large, url: 'http://127.0.0.1:1/v1', model: gpt-4o}\n"
        "    - {name: here, model: tiny, constraint: json_object_schema, price: local-cpu}\n"
        "  routes: {'*': {primary: large, local: [here], retries_max: 0}}\n"
    )
    monkeypatch.chdir(folder)
    request = ModelRequest(
        task="late",
        messages=[{"role": "user", "content": "Flight UA1545 is 90 minutes late. Wait?"}],
        output=of_model(Decision),
        output_tokens_max=128,
        deadline_s=60,
        parameters={"temperature": 0},
    )
    async with open_guard("ctxpipe.yaml") as guard:
        result = await guard.call(request)
    assert (result.rung, result.endpoint, result.reason) == ("local", "here", "unreachable"), result.attempts
    assert isinstance(result.output, Decision) and result.cost is not None and result.cost > 0
    shown = ctxpipe("status", "--json", folder=folder).lines()[0]["servers"]["llm"]
    assert shown["state"] == "up" and shown["address"].endswith("/v1")
    assert "llm" in json.loads(ctxpipe("down", "--json", folder=folder, timeout_s=120).out)["ended"]
    assert ctxpipe("status", "--json", folder=folder).lines()[0]["servers"]["llm"]["state"] == "down"


def test_one_of_two_builds_the_server_and_tells_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build itself is replaced: it takes minutes."""
    monkeypatch.setenv("CTXPIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(model_server, "TELL_EVERY_S", 0.01)
    built, told = list[Path](), list[str]()

    def build(folder: Path) -> None:
        built.append(folder)
        while not any("so far" in line for line in told):
            time.sleep(0.01)
        folder.mkdir()
        (folder / "complete").touch()

    monkeypatch.setattr(model_server, "_build", build)
    monkeypatch.setattr(programs, "_missing", lambda servers: [])
    threads = [threading.Thread(target=model_server.install, args=(told.append,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert built == [tmp_path / "model-server-0.3.36"] and model_server.installed()
    assert sum("once, some minutes" in line for line in told) == 1


def test_without_a_compiler_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTXPIPE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem) as told:
        model_server.install()
    assert "g++" in str(told.value) and "cmake" in str(told.value) and "apt-get install cmake g++" in str(told.value)
