"""The world of `ctxpipe bench lookup`: a Redis of its own, bundles in it that change, servers and loads on cores of
their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deploy.demo.bare_lookup import Task
from deploy.demo.harness import CONTEXTS
from deploy.demo.lookup_data import CONTEXT, Filling, Updates, settings, write_bare
from deploy.demo.lookup_load import HOST, Outcome, Plan
from deploy.demo.lookup_loop import Loop
from deploy.demo.lookup_samples import Sample, read_samples
from deploy.local import install
from deploy.local.processes import choose_port, wait_until
from deploy.local.redis import RedisServer
from pipeline.core.errors import EnvironmentProblem

READY_S_MAX = 60.0
STOP_S_MAX = 15.0
OPEN_CONNECTIONS_MAX = 512
"""More than a server takes in flight: what is too much waits in the server or is refused by it, not in the load."""
BUNDLES_AT_ONCE = 500
NEAR_BYTES = 64 * 1024 * 1024
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core each process keeps to: the server under test has one for itself as long as there are two."""

    server: int
    load: int
    redis: int
    updates: int

    @staticmethod
    def of_this_machine() -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        server, others = cores[0], cores[1:] or cores[:1]
        return Cores(server, others[0], others[1 % len(others)], others[2 % len(others)])


class Child:
    """A process of the measurement, with a log; what it says on standard output is its result."""

    def __init__(self, command: Sequence[str], core: int, log_file: Path, environment: Mapping[str, str] = {}) -> None:
        self.log_file = log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with kept_to(core), log_file.open("ab") as log:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def result(self, timeout_s: float) -> bytes:
        """Waits for its end. Raises EnvironmentProblem where it failed."""
        try:
            said, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise EnvironmentProblem(f"{self._name} took longer than {timeout_s:.0f} s; see {self.log_file}") from None
        if self.process.returncode:
            raise EnvironmentProblem(f"{self._name} ended with {self.process.returncode}:\n{self.tail()}")
        return said

    def stop(self) -> bytes:
        """SIGTERM, later SIGKILL; what it had said."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.communicate(timeout=STOP_S_MAX)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.communicate()[0]

    def wait_ready(self, ready: Callable[[], bool], what: str) -> None:
        if not wait_until(lambda: self.process.poll() is not None or ready(), READY_S_MAX):
            raise EnvironmentProblem(f"{what} did not answer within {READY_S_MAX:.0f} s:\n{self.tail()}")
        if self.process.poll() is not None:
            raise EnvironmentProblem(f"{what} ended while starting:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-15:])

    @property
    def _name(self) -> str:
        return " ".join(map(str, self.process.args[1:3] if isinstance(self.process.args, list) else []))


@contextmanager
def kept_to(core: int) -> Iterator[None]:
    """What is started inside keeps to this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class World:
    """Order of calls: `up`, `fill`, then `serving`, `bare`, `updating` as contexts with loads in them; `down` ends it.
    Blocks; only `fill` is a coroutine."""

    def __init__(self, root: Path, tell: Tell) -> None:
        self.root, self.tell, self.cores = root.absolute(), tell, Cores.of_this_machine()
        self.redis = RedisServer(self.root / "redis", choose_port(), appendonly=False)
        self.redis_version = ""
        self._loads = 0

    def up(self) -> None:
        """Raises EnvironmentProblem where Redis can't be had."""
        install.ensure(["redis"], self.tell)
        with kept_to(self.cores.redis):
            self.redis.start()
        self.redis_version = self._told("server", "redis_version")

    def down(self) -> None:
        self.redis.resume()
        self.redis.stop()

    async def fill(self, filling: Filling, flights: int, bare: bool = False) -> float:
        """Seconds until all flights are bundles; then, where it is wanted, writes them joined for bare GETs."""
        seconds = await filling.fill(flights)
        if bare:
            async for keys, bundles in self._joined([str(key) for key in range(1, flights + 1)]):
                await write_bare(filling.stores, keys, bundles)
        return seconds

    async def bundles(self, keys: Sequence[str]) -> list[bytes | None]:
        """As they are answered, their fragments joined."""
        return [bundle async for _, bundles in self._joined(keys) for bundle in bundles]

    async def _joined(self, keys: Sequence[str]) -> AsyncIterator[tuple[Sequence[str], list[bytes | None]]]:
        from pipeline.core.config import load, load_contexts
        from pipeline.lookup.opened import open_context

        config = load(self.config_path(NEAR_BYTES))
        opened = await open_context(config, load_contexts(config)[CONTEXT])
        try:
            for first in range(0, len(keys), BUNDLES_AT_ONCE):
                part = keys[first : first + BUNDLES_AT_ONCE]
                yield part, await opened.bundles(part)
        finally:
            await opened.close()

    def config_path(self, near_bytes: int) -> Path:
        """A configuration with a near cache of this size; Kafka is named and never asked."""
        import yaml

        path = self.root / f"near-{near_bytes}" / "ctxpipe.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {
            "kafka": {"bootstrap_servers": f"{HOST}:1"},
            "redis": {"url": self.redis.address},
            "contexts": [str(CONTEXTS / f"{CONTEXT}.yaml")],
            "serve": {"near_cache": {"bytes_max": near_bytes}},
        }
        path.write_text(yaml.safe_dump(config))
        return path

    @contextmanager
    def serving(self, near_bytes: int) -> Iterator[int]:
        """`ctxpipe serve`; gives its port."""
        port = choose_port()
        words = ["serve", "--port", str(port), "--config", str(self.config_path(near_bytes))]
        with self._server([sys.executable, "-m", "pipeline.cli", *words], port, "ctxpipe serve", "/readyz"):
            yield port

    @contextmanager
    def bare(self, client: str) -> Iterator[int]:
        """A bare HTTP server with this client of Redis."""
        port = choose_port()
        task = Task(redis=self.redis.address, client="wire" if client == "wire" else "redis-py", port=port)
        with self._server(module("deploy.demo.bare_lookup", task), port, "the bare server", "/1"):
            yield port

    @contextmanager
    def foreign(self, command: Sequence[str], port: int, what: str, path: str) -> Iterator[int]:
        """Another server, in the same way."""
        with self._server(command, port, what, path):
            yield port

    @contextmanager
    def _server(self, command: Sequence[str], port: int, what: str, path: str) -> Iterator[Child]:
        child = Child(command, self.cores.server, self.root / "logs" / f"{port}.log")
        try:
            child.wait_ready(lambda: _answers(port, path), what)
            yield child
        finally:
            child.stop()

    @contextmanager
    def updating(self, flights: int, rate_per_s: float) -> Iterator[dict[str, Any]]:
        """Changes at this rate; what is given is filled in at the end with what they came to."""
        wanted = Updates(redis=self.redis.address, flights=flights, rate_per_s=rate_per_s)
        log_file = self.root / "logs" / "updates.log"
        child = Child(module("deploy.demo.lookup_data", wanted), self.cores.updates, log_file)
        told: dict[str, Any] = {}
        try:
            yield told
        finally:
            said = child.stop()
            if said:
                told.update(msgspec.json.decode(said))

    def load(self, plan: Plan) -> tuple[Outcome, list[Sample]]:
        """Waits for its end."""
        return self.await_load(self.begin_load(plan), plan)

    def begin_load(self, plan: Plan) -> Child:
        self._loads += 1
        log_file = self.root / "logs" / f"load-{self._loads}.log"
        return Child(module("deploy.demo.lookup_load", plan), self.cores.load, log_file)

    def await_load(self, child: Child, plan: Plan) -> tuple[Outcome, list[Sample]]:
        said = child.result(plan.warm_up_s + plan.seconds + plan.timeout_s + READY_S_MAX)
        samples = Path(plan.samples)
        try:
            return msgspec.json.decode(said, type=Outcome), read_samples(samples)
        finally:
            samples.unlink(missing_ok=True)

    def plan(self, port: int, path: str, keys: int, **more: Any) -> Plan:
        """Of a load; `more` are its other fields."""
        samples = str(self.root / f"samples-{self._loads}.msgpack")
        return Plan(port=port, path=path, keys=keys, samples=samples, **more)

    def loop(self, client: str, loop: Loop, near_bytes: int = NEAR_BYTES) -> dict[str, Any]:
        """In a process of its own on the server's core: `redis-py`, `wire`, `direct`, or `near` (the direct client, and
        only what its near cache answers)."""
        log_file = self.root / "logs" / f"{client}.log"
        if client in ("direct", "near"):
            words = [str(self.config_path(near_bytes)), client, msgspec.json.encode(loop).decode()]
            command = [sys.executable, "-m", "pipeline.commands._bench_lookup_direct", *words]
        else:
            task = Task(redis=self.redis.address, client="wire" if client == "wire" else "redis-py", loop=loop)
            command = module("deploy.demo.bare_lookup", task)
        child = Child(command, self.cores.server, log_file)
        result: dict[str, Any] = msgspec.json.decode(child.result(loop.warm_up_s + loop.seconds + READY_S_MAX))
        return result

    def memory_bytes(self) -> int:
        """What Redis uses for its data and their keeping."""
        return int(self._told("memory", "used_memory"))

    def _told(self, section: str, name: str) -> str:
        lines = str(self.redis.ask("INFO", section)).splitlines()
        return next(line.partition(":")[2] for line in lines if line.startswith(f"{name}:"))


async def open_filling(world: World) -> Filling:
    from pipeline.stores.redis_store import open_stores

    return Filling(await open_stores(settings(world.redis.address)))


def module(name: str, argument: Any) -> list[str]:
    """The command that runs one of our modules with an argument as JSON."""
    return [sys.executable, "-m", name, msgspec.json.encode(argument).decode()]


def _answers(port: int, path: str) -> bool:
    """Whether a server answers this with 200."""
    import http.client

    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
