"""What `ctxpipe lag --explain` says of each thing that can be wrong, and where the runbook goes on."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from pipeline.commands._lag_show import Wishes, sparkline, views
from pipeline.commands.lag import chosen
from pipeline.core import metrics
from pipeline.ops.lag.explaining import Objectives, explain
from pipeline.ops.lag.model import (
    OK,
    REWIND,
    STALL,
    STOP,
    UNKNOWN,
    WARN,
    CollectorState,
    Finding,
    GroupLag,
    PartHealth,
    PartitionLag,
    Replica,
    Report,
    Stage,
    TopicLag,
)
from pipeline.ops.lag.publishing import LagMetrics
from tests.support.cli import ROOT

WORKER = {"group": "ctxpipe.flight.v1", "role": "worker", "context": "flight", "version": 1}
EMBEDDER = {"group": "ctxpipe.flight.v1.space.abc", "role": "embedder", "context": "flight", "space": "abc"}


def group(status: str, *partitions: PartitionLag, **given: Any) -> GroupLag:
    shown = partitions or (PartitionLag(0, status, "as it is", 10, 0, 30, 20, given.get("lag_s", 40.0)),)
    topic = TopicLag("orders", status, 20, 40.0, partitions=list(shown))
    found = {"group": "others", "members": 1, "lag_records": 20, "lag_s": 40.0, "topics": [topic], **given}
    return GroupLag(status=status, **found)


def report(*groups: GroupLag, **given: Any) -> Report:
    return Report(0.0, list(groups), **given)


def shop(severity: str, **given: Any) -> Report:
    finding = {"severity": severity, "message": "as told", "mend": "as told"}
    return report(sources=[{"source": "shop", "up": True, **given, "findings": [finding]}])


def told(seen: Report, **objectives: Any) -> list[Finding]:
    return explain(seen, Objectives(**objectives))


CASES: list[tuple[str, Report, str, str, str]] = [
    (
        "worker gone",
        report(group(STOP, members=0, **WORKER)),
        "wrong",
        "the workers of context flight (version 1): is not running: 20 records wait, it is 40 s behind its source",
        "A group has stopped",
    ),
    (
        "embedder gone",
        report(group(STOP, members=0, **EMBEDDER)),
        "wrong",
        "the embedding of context flight",
        "The embedder has stopped",
    ),
    ("unassigned", report(group(STOP, members=2)), "wrong", "does not read some of its", "A group has stopped"),
    (
        "frozen partition",
        report(group(STALL, PartitionLag(0, OK), PartitionLag(1, STALL, "nothing moved", 10, 0, 30, 20), **WORKER)),
        "wrong",
        "stands still on 1 of 2 partitions",
        "A group stands still",
    ),
    (
        "only grows",
        report(group(STALL, PartitionLag(0, WARN), trend="growing", velocity=50.0)),
        "wrong",
        "falls behind",
        "A group falls behind",
    ),
    ("went back", report(group(REWIND)), "wrong", "group others: went back", "A group went back"),
    (
        "unknown",
        report(group(UNKNOWN, lag_s=None, lag_problem="no")),
        "warning",
        "for how long is unknown (no)",
        "The state of a group is unknown",
    ),
    ("slow", report(group(WARN, trend="growing", velocity=50.0)), "warning", "falls behind", "A group falls behind"),
    ("late", report(group(OK, lag_s=90.0, trend="steady")), "warning", "is late", "A group falls behind"),
    (
        "churn",
        report(group(OK, lag_s=0.0, unsettled=True, changes=4)),
        "warning",
        "keeps rebalancing",
        "A group keeps rebalancing",
    ),
    (
        "lost",
        report(group(OK, PartitionLag(0, OK, "", 5, 9, 20, 11, lost_records=4))),
        "wrong",
        "4 records gone before the group read them",
        "Records are about to be lost",
    ),
    (
        "nearly lost",
        report(group(OK, headroom=0.1)),
        "warning",
        "10% of the retention is left",
        "Records are about to be lost",
    ),
    ("clock", report(group(OK, PartitionLag(0, OK, clock_ahead_s=7.0))), "note", "7.0 s ahead", "A stage is late"),
    (
        "replica",
        report(replicas=[Replica("http://s/metrics", STALL, "none", "serve", "flight", "abc")]),
        "wrong",
        "the serving replica at http://s/metrics, index of flight: stands still",
        "A serving replica stands still",
    ),
    (
        "process gone",
        report(replicas=[Replica("http://c/metrics", STOP, "gone", "connector")]),
        "wrong",
        "the connector at http://c/metrics: does not answer",
        "A role is down",
    ),
    (
        "stage",
        report(stages=[Stage("flight", "applied", 100, 0.4, 3.0, 0.5, 30)]),
        "warning",
        "30% of 100 updates came later than 500 ms",
        "A stage is late",
    ),
    (
        "canary",
        report(canaries=[{"source": "shop", "url": "http://s", "up": False, "reason": "3 rows behind"}]),
        "wrong",
        "what is written to shop does not come out of lookups",
        "The canary is late",
    ),
    (
        "dead letters",
        report(dead_letters=[{"name": "flight", "waiting": 3, "bundles": 2, "oldest_age_s": 60.0}]),
        "warning",
        "3 records set aside, 2 bundles wrong",
        "Dead letters wait",
    ),
    ("connector", shop("warning", slot_active=False), "wrong", "source shop: as told", "A connector has stopped"),
    ("slot", shop("unfit", wal_status="lost"), "wrong", "source shop: as told", "A slot is lost"),
    ("source away", shop("unfit", up=False), "wrong", "source shop: as told", "A source is away"),
    ("full log", shop("warning", nodes=[{}]), "warning", "source shop: as told", "cdc_raw fills"),
    ("log that ends", shop("note"), "note", "source shop: as told", "The log of a source runs out"),
    (
        "part",
        report(collector=CollectorState(10.0, parts=[PartHealth("kafka", False, "no broker answers")])),
        "wrong",
        "the collector, kafka: it sees nothing of this part",
        "The collector is away",
    ),
]


@pytest.mark.parametrize(("seen", "severity", "words", "heading"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_thing_is_named(seen: Report, severity: str, words: str, heading: str) -> None:
    found = [finding for finding in told(seen) if words in f"{finding.where}: {finding.what}"]
    assert found, told(seen)
    assert (found[0].severity, found[0].runbook) == (severity, heading) and found[0].mend


def test_every_heading_is_in_the_runbook() -> None:
    headings = set(re.findall(r"^#{2,4} (.+)$", (ROOT / "deploy" / "runbook.md").read_text(), re.MULTILINE))
    source = (ROOT / "pipeline" / "ops" / "lag" / "explaining.py").read_text()
    named = {heading for _, _, _, _, heading in CASES}
    assert named <= headings, named - headings
    assert all(f'"{heading}"' in source for heading in named)


def test_all_is_well_without_findings() -> None:
    assert told(report(group(OK, lag_s=0.2, lag_records=3))) == []
    assert told(report(group(OK, lag_s=8.0, **WORKER)), by_context={"flight": 10.0}) == []
    assert told(report(group(OK, lag_s=12.0, **WORKER)), by_context={"flight": 10.0})[0].severity == "warning"
    assert told(report(group(OK, lag_s=12.0, **EMBEDDER)), by_context={"flight": 10.0}) == [], "vectors come behind"
    came = PartitionLag(0, OK, "", 10, 0, 11, 1, 3600.0, waiting_s=0.2)
    assert told(report(group(OK, came, lag_s=3600.0))) == [], "the first record after a quiet hour is not late"


def test_what_is_wrong_comes_first_and_the_outlook_is_told() -> None:
    slow = group(WARN, group="slow", trend="shrinking", velocity=-10.0, catch_up_s=120.0)
    found = told(report(slow, group(STOP, members=0)))
    assert [finding.severity for finding in found] == ["wrong", "warning"]
    assert found[1].outlook == "It catches up in about 2 min, at this pace."
    assert "at most 1 can work" in found[1].mend


def test_a_hot_partition_and_a_quiet_topic_are_said() -> None:
    hot = PartitionLag(2, OK, "", 0, 0, 900, 900, 300.0, waiting_s=2.0, hot=True)
    (found,) = told(report(group(WARN, hot, lag_s=300.0)))
    assert "orders/2 (900 records)" in found.why and "hot-keys" in found.mend
    assert "the topic was quiet: what waits came 2.0 s ago" in found.what


def test_chosen_groups_take_their_findings_along() -> None:
    seen = report(group(STOP, members=0, **WORKER), group(STOP, members=0))
    seen = msgspec.structs.replace(seen, findings=told(seen))
    assert [one.where for one in chosen(seen, ("oth*",)).findings] == ["group others"]
    assert chosen(seen, ()) is seen


def test_a_report_is_read_back_as_it_was() -> None:
    for _, seen, *_ in CASES:
        assert msgspec.json.decode(msgspec.json.encode(seen), type=Report) == seen


def test_tables_hold_what_there_is() -> None:
    everything = Report(
        0.0,
        [group(OK, lag_s=None, lag_problem="no", history=[1, 5, 3])],
        [{"source": "shop", "connector": "postgres", "up": True, "retained_bytes": 2048}],
        [{"source": "shop", "url": "http://s", "up": True, "age_s": 1.0}],
        [{"name": "flight", "waiting": 0}],
        [Replica("http://s", OK, role="serve", lag_records=3)],
        [Stage("flight", "applied")],
    )
    shown = {view.title: view for view in views(everything, Wishes(True, True, True))}
    assert list(shown) == [
        "Consumer groups",
        "Partitions",
        "Stages, since the commit",
        "Sources",
        "Other roles",
        "Canaries",
        "Dead letters",
    ]
    assert all(len(row) == len(view.headers) for view in shown.values() for row in view.rows)
    assert ("unknown", "green") in shown["Consumer groups"].rows[0] and ("▂█▅", "green") in shown[
        "Consumer groups"
    ].rows[0]
    assert ("2.0 KiB", "") in shown["Sources"].rows[0]
    assert list(views(report(), Wishes())) == []
    assert (sparkline([]), sparkline([0, 0]), sparkline([0, 7])) == ("", "▁▁", "▁█")


def test_series_are_those_of_the_last_report() -> None:
    shown = LagMetrics(partitions=True)
    shown.show([group(STOP, group="passing", members=0)], {"passing": 2}, {"passing": 1})
    page = metrics.expose()[0].decode()
    assert 'ctxpipe_group_status{group="passing",status="STOP"} 1.0' in page
    assert 'ctxpipe_group_lag_seconds{group="passing",topic="orders"} 40.0' in page
    assert 'ctxpipe_partition_status{group="passing",partition="0",status="STOP",topic="orders"} 1.0' in page
    assert 'ctxpipe_collector_clamped_total{group="passing"} 2.0' in page
    away = PartitionLag(0, UNKNOWN, lag_problem="away")
    unknown = GroupLag("passing", UNKNOWN, topics=[TopicLag("orders", UNKNOWN, lag_problem="away", partitions=[away])])
    shown.show([unknown], {}, {})
    page = metrics.expose()[0].decode()
    assert 'ctxpipe_group_lag_seconds_known{group="passing",topic="orders"} 0.0' in page
    assert 'ctxpipe_group_lag_records{group="passing"' not in page, "unknown is no zero"
    assert 'ctxpipe_group_lag_seconds{group="passing"' not in page
    shown.show([], {}, {})
    assert "passing" not in metrics.expose()[0].decode()
