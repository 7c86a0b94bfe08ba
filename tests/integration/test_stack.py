"""The local stack as a person uses it: `ctxpipe up`, `status`, `down` in a directory of one's own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import Stack
from pipeline.core.errors import ConfigError, EnvironmentProblem
from tests.support.servers import LocalRoot

pytestmark = pytest.mark.servers


@pytest.fixture
def directory(local_root: LocalRoot, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = local_root.path / request.node.name
    yield path
    Stack(path).down()


def ctxpipe(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command, *rest = arguments
    words = [sys.executable, "-m", "pipeline.cli", command, "--dir", str(directory), *rest]
    return subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)


def test_a_day_in_the_life_of_a_stack(directory: Path) -> None:
    before = ctxpipe("status", directory=directory)
    assert before.returncode == 1
    assert "ctxpipe up" in before.stderr

    first = _servers(ctxpipe("up", "--json", directory=directory))
    assert {server["state"] for server in first.values()} == {"up"}
    assert set(first) == {"kafka", "postgres", "redis"}

    again = _servers(ctxpipe("up", "--json", directory=directory))
    assert again == first, "a second up starts nothing and changes nothing"

    stack = Stack(directory)
    redis: Any = stack.server("redis")
    redis.ask("SET", "key", "kept")
    stack.server("kafka").kill()
    silent = ctxpipe("status", directory=directory)
    assert silent.returncode == 1
    assert "down" in silent.stdout

    healed = _servers(ctxpipe("up", "--json", directory=directory))
    assert healed["kafka"]["address"] == first["kafka"]["address"]
    assert healed["kafka"]["pid"] != first["kafka"]["pid"]
    assert healed["redis"]["pid"] == first["redis"]["pid"]

    down = ctxpipe("down", "--json", directory=directory)
    assert sorted(json.loads(down.stdout)["ended"]) == ["kafka", "postgres", "redis"]
    assert json.loads((directory / "state.json").read_text())["up"] is False
    nothing = ctxpipe("down", "--json", directory=directory)
    assert json.loads(nothing.stdout) == {"ended": []}

    redis.start()
    assert redis.ask("GET", "key") == "kept"
    assert (directory / "logs" / "kafka.log").stat().st_size > 0


def test_fresh_empties_the_data(directory: Path) -> None:
    stack = _SmallStack(directory)
    redis: Any = stack.up_redis()
    redis.ask("SET", "key", "value")
    stack.up_redis(fresh=True)
    assert redis.ask("GET", "key") is None


def test_down_leaves_a_process_alone_that_merely_has_the_pid(directory: Path) -> None:
    stack = _SmallStack(directory)
    redis: Any = stack.up_redis()
    redis.kill()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        redis.mark_file.write_text(json.dumps({"pid": stranger.pid, "started": "another time"}))
        assert Stack(directory).down() == []
        assert stranger.poll() is None
        stranger.kill()


def test_a_remembered_port_that_is_taken_moves(directory: Path) -> None:
    stack = _SmallStack(directory)
    redis: Any = stack.up_redis()
    port = redis.port
    redis.stop()
    lines: list[str] = []
    with _listening(port):
        moved: Any = stack.up_redis(say=lines.append)
        assert moved.port != port
        assert moved.ask("PING") == "PONG"
    assert any(f"port {port} is now in use" in line for line in lines)


def test_a_wanted_port_that_is_taken_is_one_clear_message(directory: Path) -> None:
    with _listening(0) as port, pytest.raises(EnvironmentProblem, match=f"port {port} is in use by another program"):
        _SmallStack(directory).up_redis(ports={"redis": port})


def test_an_unknown_server_is_a_usage_error(directory: Path) -> None:
    with pytest.raises(ConfigError, match="no server called 'mysql'"):
        Stack(directory).up(with_=["mysql"])
    refused = ctxpipe("up", "--port", "kafka=high", directory=directory)
    assert refused.returncode == 2
    assert "expected SERVER=PORT" in refused.stderr
    assert "Traceback" not in refused.stderr


class _SmallStack(Stack):
    """The stack with Redis alone, which is up in a moment."""

    def up_redis(self, **options: Any) -> Any:
        self.up(**options)
        return self.server("redis")


@pytest.fixture(autouse=True)
def only_redis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "day" not in request.node.name:
        monkeypatch.setattr("deploy.local.stack.ALWAYS", ("redis",))


class _listening:
    """A program that holds a port."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))

    def __enter__(self) -> int:
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _servers(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["servers"])
