"""Workers and the processes of a worker: what they tell of themselves, through pipes and names in their group."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.group import HeartbeatRequest

from pipeline.core.health import Health
from pipeline.streams.child_reports import SILENT_S_MAX, ChildReport, ReportingChild, report_of
from pipeline.streams.ending import EXIT_RESTART
from pipeline.streams.membership import FENCED_INSTANCE_ID, UNKNOWN_MEMBER_ID, NameTaken, member_name, watch_name
from pipeline.streams.supervisor import Place, Supervisor
from pipeline.streams.watchdog import Sample, Watchdog
from pipeline.streams.worker_health import watch_worker
from tests.support.eventually import eventually_sync
from tests.unit.test_streams import FakeChild

CHILD = """
import sys, time
from pipeline.core.health import Health
from pipeline.streams.child_reports import report_to
health = Health("worker")
health.check("partitions", lambda: "", "startup")
health.check("servers", lambda: "redis is away", "note")
report_to(int(sys.argv[-1]), health)
sys.stdin.readline()
health.started()
time.sleep(60)
"""


def test_a_process_tells_its_parent_how_it_is() -> None:
    child = ReportingChild([sys.executable, "-c", CHILD])
    try:
        assert child.problems("ready", child.reported_s) == {"report": "it is starting"}
        assert child.problems("live", child.reported_s) == {}, "who starts is alive"
        eventually_sync(lambda: child.poll() is None and child.report is not None)
        report = child.report
        assert report is not None and report.note == {"servers": "redis is away"} and not report.live
        assert "started" in report.startup and "started" in report.ready
        late_s = child.reported_s + SILENT_S_MAX + 1
        assert "told nothing" in child.problems("live", late_s)["report"]
    finally:
        child.kill()
    eventually_sync(lambda: child.poll() is not None)
    assert child.poll() == -9, "asked again after its end"


def test_a_report_is_what_the_probes_say() -> None:
    health = Health("worker")
    health.check("progress", lambda: "it stands", "live")
    health.check("group", lambda: "", "note")
    health.started()
    health.stopping()
    assert report_of(health) == ChildReport(live={"progress": "it stands"}, ready={"taking work": "worker is stopping"})


class ToldChild(FakeChild):
    """Tells what a test wants it to."""

    report = ChildReport()

    def problems(self, probe: str, now_s: float) -> Any:
        return self.report.problems(probe)


def supervised(*places: Place) -> tuple[Supervisor, Health, list[ToldChild]]:
    children: list[ToldChild] = []

    def spawn(command: Sequence[str]) -> ToldChild:
        children.append(ToldChild(len(children)))
        return children[-1]

    supervisor, health = Supervisor(places, spawn=spawn, now_s=lambda: 0.0), Health("worker")
    supervisor.watch(health)
    health.started()
    return supervisor, health, children


def test_a_parent_speaks_for_its_processes() -> None:
    supervisor, health, children = supervised(Place("flight/1", ["a"]), Place("flight/spaces", ["b"], vital=False))
    assert health.live().ok and "flight/1: it is to be started again" in health.ready().problems["processes ready"]
    supervisor.look()
    assert health.ready().ok and health.startup().ok
    bundles, spaces = children
    spaces.report = ChildReport(live={"progress": "stands"}, startup={"partitions": "none yet"})
    assert health.live().ok and health.ready().ok, "bundles do not wait for embeddings"
    assert "flight/spaces: stands; flight/spaces: none yet" in health.ready().text()
    bundles.report = ChildReport(live={"progress": "stands"}, note={"servers": "Redis is away"})
    assert health.live().problems == {"processes alive": "flight/1: stands"}
    assert "flight/1: Redis is away" in health.ready().text() and health.ready().ok
    bundles.code = 70
    supervisor.look()
    assert health.live().ok and not health.ready().ok, "a restart of the parent would mend nothing"


def test_where_only_embeddings_are_made_they_count() -> None:
    supervisor, health, (*_,) = supervised(Place("flight/spaces", ["b"], vital=False))
    supervisor.look()
    child = supervisor.places[0].child
    assert isinstance(child, ToldChild)
    child.report = ChildReport(live={"event loop": "stands"})
    assert not health.live().ok


def test_the_parent_passes_signals_on_and_tells_that_it_ends() -> None:
    supervisor, _, children = supervised(Place("flight/1", ["a"]))
    stop, told = threading.Event(), list[str]()

    def between() -> None:
        if not children:
            return
        supervisor.tell_all(1)
        children[0].code = 0
        stop.set()

    assert supervisor.run(stop, between, lambda: told.append("ending")) == 0
    assert children[0].signals[0] == 1 and told == ["ending"]


def test_a_worker_recovers_gets_on_and_names_what_it_waits_for() -> None:
    consumer = SimpleNamespace(placed=False, waits_for_stores=False)
    app: Any = SimpleNamespace(
        opened=None, waits_for="", held_up_by="", _consumer=None, rebalancing=False, watchdog=Watchdog(limit_s=10)
    )
    now, health = SimpleNamespace(s=0.0), Health("worker")
    watch_worker(app, health, lambda: now.s)
    health.started()
    assert set(health.startup().problems) == {"connected", "partitions"}
    app.waits_for = "Kafka at a:1 does not answer"
    assert health.startup().problems["connected"] == "Kafka at a:1 does not answer"
    now.s = 1000.0
    assert health.live().ok, "who waits for Kafka from its start is alive"
    app.opened, app._consumer, app.waits_for = object(), consumer, ""
    assert set(health.ready().problems) == {"partitions"}
    consumer.placed = True
    assert health.ready().ok
    consumer.placed, consumer.waits_for_stores, app.rebalancing = False, True, True
    assert health.ready().ok and "[~]servers degraded" in health.ready().text(), "an outage degrades"
    standing = Sample({("t", 0): 5}, {("t", 0): 9})
    for _ in range(2):
        app.watchdog.sample(now.s, standing)
        now.s += 11
        app.watchdog.sample(now.s, standing)
    assert "t/0 stands at offset 5" in health.live().problems["progress"]
    app.watchdog.sample(now.s, Sample({("t", 0): 5}, {("t", 0): 9}, rebalancing=True))
    assert health.live().ok, "a rebalance is no standing still"
    app.watchdog.sample(now.s, Sample({("t", 0): 9}, {("t", 0): 9}))
    now.s += 9
    assert health.live().ok, "nothing waits"


class Coordinator:
    """As of aiokafka: `codes` are what Kafka answers next."""

    group_id = "flight.v1"

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    async def _send_req(self, request: Any) -> Any:
        return SimpleNamespace(error_code=self.codes.pop(0))


@pytest.mark.parametrize(
    ("code", "after_s", "taken"),
    [(UNKNOWN_MEMBER_ID, 3, True), (UNKNOWN_MEMBER_ID, 30, False), (FENCED_INSTANCE_ID, 30, True), (27, 3, False)],
)
async def test_two_with_one_name_are_told_and_a_session_that_ran_out_is_not(
    code: int, after_s: float, taken: bool
) -> None:
    now, told, coordinator = SimpleNamespace(s=0.0), list[NameTaken](), Coordinator(0, code)
    watch_name(coordinator, "pod-0-1", 25.0, told.append, lambda: now.s)
    beat = HeartbeatRequest("flight.v1", 1, "m")
    await coordinator._send_req(beat)
    assert not told
    now.s = after_s
    await coordinator._send_req(beat)
    assert bool(told) == taken
    if told:
        assert "'pod-0-1' in group flight.v1" in str(told[0]) and told[0].exit_code == EXIT_RESTART
        assert "group.instance.id" in str(told[0])


def test_names_of_members() -> None:
    assert member_name("", 1) is None and member_name("pod-0", 2) == "pod-0-2"
    assert len(member_name("x" * 300, 2) or "") == 249
