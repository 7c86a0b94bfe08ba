"""What keeps a context's spaces fed: processes by what is in use, a space begun when the spec asks for another one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.commands import _embedding_keeper
from pipeline.commands._embedding_keeper import METRICS_PORTS, Keeper, place_of
from pipeline.core.errors import Retryable
from pipeline.core.running import RunningConfig
from pipeline.ops.space_promotion import Step
from pipeline.stores.memory_spaces import MemorySpaces
from pipeline.stores.spaces import SpaceRecord
from pipeline.streams.supervisor import STOP_TIMEOUT_S, Place, Supervisor
from schemas.context import ContextSpec
from schemas.definition import Definition
from tests.support.eventually import eventually
from tests.support.search_world import plane_spec
from tests.unit.test_streams import FakeChild

Commands = list[list[str]]


class Lasting(FakeChild):
    """Ends a while after it was asked to."""

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class World:
    """A keeper over stores in memory, whose processes are made up. `begins`: what `--begin-space` prints or ends
    with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, metrics_port: int | None = None) -> None:
        self.now_s = 0.0
        self.children: list[tuple[list[str], FakeChild]] = []
        self.begun: Commands = []
        self.begins: list[bytes | int] = []
        self.spaces = MemorySpaces()
        self.definition: Definition | None = None
        self.closed = 0
        self.serves: int | None = 3
        config: Any = SimpleNamespace(running=RunningConfig())
        self.keeper = Keeper(config, "/etc/ctxpipe.yaml", plane_spec(), Path("/etc"), metrics_port)
        self.keeper._supervisor = Supervisor([], spawn=self._spawn, now_s=lambda: self.now_s)
        self.keeper._stores = SimpleNamespace(spaces=self.spaces, serving=self, close=self._close)  # type: ignore[assignment]
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self._begin)
        monkeypatch.setattr(_embedding_keeper, "settle", self._settle)
        self.settled: list[str] = []
        self.step = Step("wait", "it is being built", "a")

    async def _settle(self, spaces: Any, wanted: str) -> Step:
        self.settled.append(wanted)
        return self.step

    def stored(self, **embedding: Any) -> None:
        """A worker of the version has begun, with this spec."""
        spec = plane_spec()
        assert spec.embedding is not None
        made = spec.model_copy(update={"embedding": spec.embedding.model_copy(update=embedding)})
        self.definition = Definition(made, {})

    def register(self, *names: str, state: Any = "candidate") -> None:
        for name in names:
            self.spaces.records[name] = SpaceRecord(
                space=name, state=state, definition=b"", canaries=b"", dimension=1, created_us=1
            )

    def running(self) -> list[str]:
        """Names of places with a process."""
        return [place.name for place in self.keeper._supervisor.places if place.child is not None]

    async def look(self) -> None:
        await self.keeper._feed()
        self.keeper._supervisor.look()

    # ---- what the keeper needs

    async def current(self) -> int | None:
        return self.serves

    async def definition_of(self, version: int) -> Definition | None:
        assert version == 3
        return self.definition

    def _spawn(self, command: Sequence[str]) -> FakeChild:
        self.children.append((list(command), Lasting(len(self.children))))
        return self.children[-1][1]

    async def _begin(self, *words: str, stdout: int) -> Any:
        self.begun.append(list(words))
        answer = self.begins.pop(0) if self.begins else b"a\n"

        async def communicate() -> tuple[bytes, None]:
            return (answer if isinstance(answer, bytes) else b""), None

        if isinstance(answer, bytes) and answer:
            self.register(answer.decode().strip())
        return SimpleNamespace(communicate=communicate, returncode=answer if isinstance(answer, int) else 0)

    async def _close(self) -> None:
        self.closed += 1


Make = Callable[..., World]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    def build(**more: Any) -> World:
        world = World(monkeypatch, **more)
        serving = SimpleNamespace(definition=world.definition_of, current=world.current)
        world.keeper._stores.serving = serving  # type: ignore[union-attr,misc,assignment]
        return world

    return build


async def test_every_space_in_use_has_a_process(make: Make) -> None:
    world = make()
    world.register("a", state="serving")
    world.register("b", state="candidate")
    world.register("c", state="previous")
    world.register("old", state="retired")
    await world.look()
    assert world.running() == ["plane/space a", "plane/space b", "plane/space c"]
    command = world.children[0][0]
    assert command[1:] == [
        "-m", "pipeline.streams.process", "--config", "/etc/ctxpipe.yaml", "plane", "--space", "a", "--version", "3"
    ]  # fmt: skip
    await world.look()
    assert len(world.children) == 3


async def test_a_retired_spaces_process_ends_in_order(make: Make) -> None:
    world = make()
    world.register("a", "b")
    await world.look()
    child = world.children[0][1]
    world.register("a", state="retired")
    await world.look()
    assert child.signals == [signal.SIGTERM] and world.running() == ["plane/space b"]
    world.now_s = STOP_TIMEOUT_S - 1
    await world.look()
    assert child.code is None
    world.now_s = STOP_TIMEOUT_S + 1
    await world.look()
    assert child.code == -9, "killed when it does not end"
    world.register("a")
    await world.look()
    assert world.running() == ["plane/space b", "plane/space a"]


async def test_a_process_that_ends_with_a_broken_configuration_is_tried_again(make: Make) -> None:
    """The others and the bundles go on."""
    world = make()
    world.register("a", "b")
    await world.look()
    world.children[0][1].code = 2
    await world.look()
    assert world.running() == ["plane/space b"]
    world.now_s = 100
    await world.look()
    assert len(world.children) == 3 and len(world.running()) == 2


async def test_processes_serve_their_metrics_at_ports_of_their_own(make: Make) -> None:
    world = make(metrics_port=9100)
    world.register("a", "b")
    await world.look()
    world.register("a", state="retired")
    world.register("c")
    await world.look()
    world.register(*"defg")
    await world.look()
    ports = [command[-1] for command, _ in world.children]
    assert ports == ["9100", "9101", "9102", "9100", "9103", "0", "0"] and METRICS_PORTS == 4


async def test_nothing_begins_before_a_worker_of_the_version(make: Make) -> None:
    world = make()
    await world.keeper._feed()
    await world.keeper._begin()
    await world.keeper._settle()
    assert world.begun == [] and world.settled == []


async def test_nothing_is_promoted_while_the_versions_bundles_are_being_built(make: Make) -> None:
    """The space of a version without bundles is complete, too; searches would find nothing in it."""
    world = make()
    world.stored()
    world.serves = None
    for _ in range(2):
        await world.keeper._feed()
        await world.keeper._begin()
        await world.keeper._settle()
        world.serves = 2
    assert world.begun != [] and world.settled == []
    world.serves = 3
    await world.keeper._settle()
    assert world.settled == ["a"]


async def test_the_space_of_the_stored_spec_begins_once(make: Make) -> None:
    world = make()
    world.stored()
    for _ in range(3):
        await world.keeper._feed()
        await world.keeper._begin()
        await world.keeper._settle()
    (command,) = world.begun
    assert command[3:] == ["--config", "/etc/ctxpipe.yaml", "plane", "--begin-space", "--version", "3"]
    assert world.settled == ["a"] * 3


@pytest.mark.parametrize(
    ("changed", "begins"),
    [
        ({"template": "{{ name }}"}, True),
        ({"dimension": 32}, True),
        ({"filters": ["year"]}, True),
        ({"document_prefix": "passage: "}, True),
        ({"promotion": "manual"}, False),
        ({"endpoint": "other"}, False),
    ],
)
async def test_another_space_begins_when_the_spec_asks_for_one(
    make: Make, changed: dict[str, Any], begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make()
    world.stored()
    await world.keeper._feed()
    await world.keeper._begin()
    world.stored(**changed)
    world.begins = [b"b\n"]
    await world.keeper._feed()
    await world.keeper._begin()
    await world.keeper._settle()
    assert len(world.begun) == 1 + begins and world.settled == ["b" if begins else "a"]


@pytest.mark.parametrize("answer", [2, 3, b""])
async def test_a_space_that_cannot_begin_is_tried_again_and_the_old_one_is_settled(
    make: Make, answer: bytes | int
) -> None:
    world = make()
    world.stored()
    await world.keeper._feed()
    await world.keeper._begin()
    world.stored(template="{{ name }}")
    world.begins = [answer]
    await world.keeper._feed()
    with pytest.raises(Retryable, match="can't begin"):
        await world.keeper._begin()
    await world.keeper._settle()
    assert world.settled == ["a"]
    world.begins = [b"b\n"]
    await world.keeper._begin()
    await world.keeper._settle()
    assert world.settled == ["a", "b"]


async def test_a_redis_that_lost_its_memory_gets_its_spaces_back(make: Make) -> None:
    world = make()
    world.stored()
    await world.keeper._feed()
    await world.keeper._begin()
    world.spaces.records.clear()
    await world.keeper._begin()
    assert len(world.begun) == 2 and "a" in world.spaces.records


async def test_an_embedding_that_was_taken_out_begins_nothing(make: Make) -> None:
    world = make()
    world.stored()
    await world.keeper._feed()
    await world.keeper._begin()
    assert world.definition is not None
    without = world.definition.spec.model_dump(exclude={"embedding"})
    world.definition = Definition(ContextSpec.model_validate(without), {})
    await world.keeper._feed()
    await world.keeper._begin()
    await world.keeper._settle()
    assert len(world.begun) == 1 and world.settled == []


async def test_trouble_is_told_once_and_ends_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = make()
    monkeypatch.setattr(_embedding_keeper, "SPACES_KNOWN_FOR_S", 0.001)
    monkeypatch.setattr(_embedding_keeper, "SETTLE_EVERY_S", 0.001)
    monkeypatch.setattr(_embedding_keeper, "BEGIN_LONGEST_WAIT_S", 0.002)
    monkeypatch.setattr(_embedding_keeper, "LOOK_EVERY_S", 0.001)
    world.stored()
    real, times = world.keeper._feed, 0

    async def feed() -> None:
        nonlocal times
        times += 1
        if times < 5:
            raise Retryable("Redis is away")
        await real()

    world.keeper._feed = feed  # type: ignore[method-assign]
    running = asyncio.create_task(world.keeper.run())
    await eventually(lambda: world.settled and world.running())
    child = world.children[0][1]
    running.cancel()
    await eventually(lambda: child.signals)
    child.code = 0
    await asyncio.gather(running, return_exceptions=True)
    assert [record.message for record in caplog.records].count("Redis is away") == 1
    assert child.signals == [signal.SIGTERM] and world.closed == 1, "its processes end with it"


async def test_what_settling_leads_to_is_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    world = make()
    world.stored()
    await world.keeper._feed()
    await world.keeper._begin()
    caplog.set_level("INFO")
    for do, reason in (("wait", "12 texts to go"), ("wait", "12 texts to go"), ("promote", "complete")):
        world.step = Step(do, reason, "a")  # type: ignore[arg-type]
        await world.keeper._settle()
    world.step = Step("note", "nDCG is worse", "a")
    await world.keeper._settle()
    told = [record.message for record in caplog.records if record.name == "ctxpipe.spaces"]
    assert told == [
        "space a of plane: 12 texts to go",
        "space a of plane serves now: complete",
        "space a of plane does not take over: nDCG is worse",
    ]


def test_the_keepers_own_place_ends_nobody() -> None:
    place = place_of("/etc/ctxpipe.yaml", "plane", 9100)
    assert (place.name, place.vital, list(place.command)[-3:]) == (
        "plane/spaces", False, ["plane", "--metrics-port", "9100"]
    )  # fmt: skip
    children: list[FakeChild] = []

    def spawn(command: Sequence[str]) -> FakeChild:
        children.append(FakeChild(len(children)))
        return children[-1]

    supervisor = Supervisor([place, Place("plane/1", ["worker"])], spawn=spawn, now_s=lambda: 0.0)
    supervisor.look()
    children[0].code = 3
    assert supervisor.look() is None and supervisor.places[0].child is None
    children[1].code = 3
    assert supervisor.look() == 3, "bundles are what it is all for"
