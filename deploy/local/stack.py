"""The local stack: a named set of real servers in one directory, started, ended and shown together.

`state.json` in that directory remembers the servers' ports and addresses; `ctxpipe` reads them from there when its
configuration names none:

    {"version": 1, "up": true, "servers": {"kafka": {"address": "127.0.0.1:19092", "ports": {"port": 19092, …},
     "data_dir": "…", "log": "…"}, "postgres": {"address": "postgresql://…"}, "redis": {"address": "redis://…"}}}
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.local import install, model_server
from deploy.local.cassandra import CassandraServer
from deploy.local.kafka import KafkaServer
from deploy.local.model_server import ModelServer
from deploy.local.postgres import PostgresServer
from deploy.local.processes import choose_port
from deploy.local.redis import RedisServer
from deploy.local.server import Server
from pipeline.core.errors import ConfigError, EnvironmentProblem

STATE_VERSION = 1
DEFAULT_ROOT = Path(".ctxpipe") / "local"
ALWAYS = ("kafka", "postgres", "redis")
ON_REQUEST = ("cassandra", "llm")
PREFERRED_PORTS: Mapping[str, Mapping[str, int]] = {
    "kafka": {"port": 19092, "controller_port": 19093},
    "postgres": {"port": 15432},
    "redis": {"port": 16379},
    "cassandra": {"port": 19042, "storage_port": 17000},
    "llm": {"port": 18081},
}
CLASSES: Mapping[str, type[Server]] = {
    "kafka": KafkaServer,
    "postgres": PostgresServer,
    "redis": RedisServer,
    "cassandra": CassandraServer,
    "llm": ModelServer,
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class ServerStatus:
    """One server as it is now; "silent" is a process that runs but does not answer."""

    name: str
    state: Literal["up", "silent", "down"]
    address: str
    pid: int | None
    log: str
    data_dir: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Stack:
    """The servers under one directory (default `.ctxpipe/local` of the working directory); all calls block."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or DEFAULT_ROOT).absolute()
        self._state_file = self.root / "state.json"

    def up(
        self,
        *,
        with_: Iterable[str] = (),
        fresh: bool = False,
        ports: Mapping[str, int] | None = None,
        say: Say = lambda _line: None,
    ) -> list[ServerStatus]:
        """Start what does not run yet and return when every server answers.

        with_: servers beyond Kafka, Postgres and Redis. fresh: empty the data of all servers first. ports: wanted
        ports by server name; one that is in use is an EnvironmentProblem, whereas a port chosen here just moves.
        """
        wanted = [*ALWAYS, *_checked(with_, ON_REQUEST)]
        _checked(ports or {}, CLASSES)
        install.ensure([name for name in wanted if name != ModelServer.kind], say)
        if ModelServer.kind in wanted:
            model_server.install(say)
        with self._locked():
            if fresh:
                self._end(say)
                self._empty(say)
            servers = [self._server(name, (ports or {}).get(name), say) for name in wanted]
            starting = [server for server in servers if not server.running()]
            for server in starting:
                say(f"Starting {server.name} on port {server.port}")
                server.launch()
            for server in servers:
                server.wait_ready()
            self._write(up=True)
            return [_status(server) for server in servers]

    def down(self, say: Say = lambda _line: None) -> list[str]:
        """End the servers that `up` started, and nothing else; returns their names. Data and logs stay."""
        if not self._state_file.exists():
            return []
        with self._locked():
            return self._end(say)

    def status(self) -> list[ServerStatus]:
        """Every server this directory knows; empty when nothing was ever started here."""
        return [_status(server) for server in self._known()]

    def server(self, name: str) -> Server:
        """One server that `up` has started, for a program that wants to stop, kill or ask it."""
        for server in self._known():
            if server.name == name:
                return server
        raise EnvironmentProblem(f"No {name} was started in {self.root}. Start it with: ctxpipe up")

    def _server(self, name: str, wanted_port: int | None, say: Say) -> Server:
        """The server with its remembered ports where they are free, else with others, remembered before it starts."""
        entries = self._entries()
        remembered = dict(entries.get(name, {}).get("ports", {}))
        server = self._build(name, remembered) if remembered else None
        if server is not None and server.running():
            if wanted_port not in (None, server.port):
                raise EnvironmentProblem(
                    f"{name} already runs on port {server.port}. To move it to {wanted_port}: ctxpipe down, then up."
                )
            return server
        ports = self._choose_ports(name, remembered, say)
        if wanted_port is not None:
            ports["port"] = wanted_port
        server = self._build(name, ports)
        if wanted_port is not None:
            server.require_free_port()
        entries[name] = {
            "address": server.address,
            "ports": ports,
            "data_dir": str(server.data_dir),
            "log": str(server.log_file),
        }
        self._write(up=False, entries=entries)
        return server

    def _choose_ports(self, name: str, remembered: Mapping[str, int], say: Say) -> dict[str, int]:
        ports = {}
        for use, preferred in PREFERRED_PORTS[name].items():
            before = remembered.get(use)
            ports[use] = choose_port(before or preferred)
            if before is not None and ports[use] != before:
                say(f"{name}: port {before} is now in use by another program; taking {ports[use]}")
        return ports

    def _build(self, name: str, ports: Mapping[str, int]) -> Server:
        arguments: Mapping[str, Any] = ports
        return CLASSES[name](self.root / name, log_dir=self.root / "logs", **arguments)

    def _known(self) -> list[Server]:
        return [self._build(name, entry["ports"]) for name, entry in self._entries().items()]

    def _end(self, say: Say) -> list[str]:
        ended = []
        for server in reversed(self._known()):
            if server.running():
                say(f"Stopping {server.name}")
                ended.append(server.name)
            server.stop()
        self._write(up=False)
        return ended

    def _empty(self, say: Say) -> None:
        """Remove the data of the known servers; nothing else in the directory is touched."""
        for server in self._known():
            if server.data_dir.exists():
                say(f"Emptying the data of {server.name}")
            server.remove_data()
        shutil.rmtree(self.root / "logs", ignore_errors=True)

    def _entries(self) -> dict[str, dict[str, Any]]:
        try:
            state = json.loads(self._state_file.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise EnvironmentProblem(f"{self._state_file} is damaged ({error}); delete it and start again.") from error
        if state.get("version") != STATE_VERSION:
            raise EnvironmentProblem(f"{self._state_file} was written by another version; delete it and start again.")
        return dict(state["servers"])

    def _write(self, *, up: bool, entries: Mapping[str, Any] | None = None) -> None:
        state = {"version": STATE_VERSION, "up": up, "servers": self._entries() if entries is None else entries}
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=2) + "\n")
        partial.replace(self._state_file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two commands at once on one directory wait for each other."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "lock").open("w")
        except OSError as error:
            raise EnvironmentProblem(f"Can't write to {self.root}: {error.strerror}. Choose another --dir.") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _status(server: Server) -> ServerStatus:
    process = server.process if server.running() else None
    state: Literal["up", "silent", "down"] = "down"
    if process is not None:
        state = "up" if server.answers() else "silent"
    return ServerStatus(
        name=server.name,
        state=state,
        address=server.address,
        pid=process.pid if process else None,
        log=str(server.log_file),
        data_dir=str(server.data_dir),
    )


def _checked(names: Iterable[str], known: Iterable[str]) -> list[str]:
    wanted, allowed = list(names), list(known)
    unknown = [name for name in wanted if name not in allowed]
    if unknown:
        raise ConfigError([f"There is no server called {name!r}; known: {', '.join(allowed)}." for name in unknown])
    return wanted
