"""A local Redis: alone, as a replica, or as a cluster of three nodes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.local import install
from deploy.local.processes import HOST, choose_port, wait_until
from deploy.local.server import Server
from pipeline.core.errors import EnvironmentProblem

SLOTS = 16_384


class RedisServer(Server):
    """One Redis process.

    appendonly: keep an append-only file (`appendfsync everysec`, what production runs); without it nothing survives.
    replica_of: (host, port) of a primary to follow. cluster_port: given for a node of a cluster.
    """

    kind = "redis"
    ready_timeout_s = 30.0

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        name: str | None = None,
        log_dir: Path | None = None,
        appendonly: bool = True,
        replica_of: tuple[str, int] | None = None,
        cluster_port: int | None = None,
        password: str | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        super().__init__(data_dir, port, name=name, log_dir=log_dir)
        self.appendonly = appendonly
        self.replica_of = replica_of
        self.cluster_port = cluster_port
        self.password = password
        self.settings = tuple(settings)

    @property
    def address(self) -> str:
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}{HOST}:{self.port}" + ("" if self.cluster_port else "/0")

    @property
    def append_only_dir(self) -> Path:
        """Where the append-only file lies (its newest `.incr.aof` holds the last writes)."""
        return self.data_dir / "appendonlydir"

    def prepare(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        words = [install.redis_program(), "--port", str(self.port), "--bind", HOST, "--dir", str(self.data_dir)]
        words += ["--daemonize", "no", "--save", "", "--protected-mode", "no"]
        words += ["--repl-diskless-sync-delay", "0"]  # a replica here needs not wait for others to join it
        words += ["--appendonly", "yes" if self.appendonly else "no", "--appendfsync", "everysec"]
        if self.replica_of:
            words += ["--replicaof", self.replica_of[0], str(self.replica_of[1])]
        if self.cluster_port:
            words += ["--cluster-enabled", "yes", "--cluster-port", str(self.cluster_port)]
            words += ["--cluster-node-timeout", "2000", "--cluster-config-file", "nodes.conf"]
        if self.password:
            words += ["--requirepass", self.password, "--masterauth", self.password]
        return [*words, *self.settings]

    def answers(self) -> bool:
        try:
            return bool(self.ask("PING") == "PONG")
        except (OSError, EnvironmentProblem):  # not listening yet, or still loading its file
            return False

    def ask(self, *words: str | int, timeout_s: float = 5.0) -> Any:
        """Send one command and return its reply (see `ask`)."""
        return ask(HOST, self.port, *words, password=self.password, timeout_s=timeout_s)


class RedisCluster:
    """Three primaries without replicas, each holding a third of the slots; the smallest cluster that is one."""

    nodes_count = 3

    def __init__(self, data_dir: Path, *, log_dir: Path | None = None, appendonly: bool = False) -> None:
        self.nodes = [
            RedisServer(
                data_dir / f"node{index}",
                choose_port(),
                name=f"redis-cluster-{index}",
                log_dir=log_dir or data_dir / "logs",
                appendonly=appendonly,
                cluster_port=choose_port(),
            )
            for index in range(self.nodes_count)
        ]

    @property
    def address(self) -> str:
        return self.nodes[0].address

    def start(self) -> None:
        """Start the nodes, make them one cluster, and return when each of them sees all slots served."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_ready()
        if "cluster_slots_assigned:0" in self.nodes[0].ask("CLUSTER", "INFO"):
            self._form()
        if not wait_until(self._complete, 30.0):
            raise EnvironmentProblem(f"The Redis cluster did not form; see {self.nodes[0].log_file.parent}.")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def _form(self) -> None:
        bounds = [SLOTS * index // self.nodes_count for index in range(self.nodes_count + 1)]
        for node, first, after in zip(self.nodes, bounds, bounds[1:], strict=False):
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
        for other in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", HOST, other.port, other.cluster_port or 0)

    def _complete(self) -> bool:
        with contextlib.suppress(OSError):
            states = [node.ask("CLUSTER", "INFO") for node in self.nodes]
            return all(
                "cluster_state:ok" in state and f"cluster_known_nodes:{self.nodes_count}" in state for state in states
            )
        return False


def ask(host: str, port: int, *words: str | int, password: str | None = None, timeout_s: float = 5.0) -> Any:
    """Send one command to a Redis and return its reply: str, int, None or a list of those.

    The stack speaks the protocol itself so that the Redis client stays in the one place that owns it.
    An error reply is an EnvironmentProblem, a server that is away an OSError.
    """
    with (
        socket.create_connection((host, port), timeout=timeout_s) as connection,
        connection.makefile("rwb") as stream,
    ):
        answer = None
        for command in [["AUTH", password], words] if password else [words]:
            stream.write(_packed([str(word) for word in command]))
            stream.flush()
            answer = _reply(stream)
        return answer


def _packed(words: Sequence[str]) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        encoded = word.encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(encoded), encoded))
    return b"".join(parts)


def _reply(stream: Any) -> Any:
    line = stream.readline().rstrip(b"\r\n")
    if not line:
        raise ConnectionError("Redis closed the connection")
    mark, rest = line[:1], line[1:].decode(errors="replace")
    if mark == b"+":
        return rest
    if mark == b"-":
        raise EnvironmentProblem(f"Redis answered: {rest}")
    if mark == b":":
        return int(rest)
    if mark == b"$":
        return None if rest == "-1" else stream.read(int(rest) + 2)[:-2].decode(errors="replace")
    return None if rest == "-1" else [_reply(stream) for _ in range(int(rest))]
