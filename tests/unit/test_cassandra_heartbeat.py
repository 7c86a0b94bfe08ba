"""When a heartbeat of a Cassandra source counts: what its parts conclude, without servers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.deliveries import LOGGERS, Deliveries
from connectors.cassandra.heartbeat import Beats, Heartbeat
from connectors.cassandra.properties import logging_text
from connectors.publisher import KafkaSettings
from pipeline.core.clock import SystemClock
from tests.support.sidecar_log import ARRIVED, BEGUN, FAILED, note


def test_what_was_begun_counts_when_as_many_batches_of_each_partition_arrived() -> None:
    deliveries = Deliveries()
    assert not deliveries.note("2026-11-25 05:00:00,001 INFO  SchemaHolder Added the schema for ks.t")
    note(deliveries, (BEGUN, "s.ks.t-1", 2), (BEGUN, "s.ks.t-1", 2), (BEGUN, "s.ks.beat", 0))
    mark = deliveries.mark()
    note(deliveries, (BEGUN, "s.ks.t-1", 3), (ARRIVED, "s.ks.beat", 0), (ARRIVED, "s.ks.t-1", 2))
    assert not deliveries.reached(mark, "s.ks.beat"), "the heartbeat overtook a batch of another partition"
    note(deliveries, (FAILED, "s.ks.t-1", 2))
    assert not deliveries.reached(mark, "s.ks.beat")
    note(deliveries, (ARRIVED, "s.ks.t-1", 2))
    assert deliveries.reached(mark, "s.ks.beat") and not deliveries.reached(deliveries.mark(), "s.ks.beat")


def test_a_log_that_does_not_tell_batches_proves_nothing() -> None:
    deliveries = Deliveries()
    assert not deliveries.reached(deliveries.mark(), "s.ks.beat"), "it says nothing"
    note(deliveries, (BEGUN, "s.ks.beat", 0), (ARRIVED, "s.ks.beat", 0))
    assert deliveries.reached(deliveries.mark(), "s.ks.beat")
    note(deliveries, (ARRIVED, "s.ks.t", 0))
    assert not deliveries.reached(deliveries.mark(), "s.ks.beat"), "it leaves out beginnings"
    deliveries.forget()
    assert not deliveries.reached(deliveries.mark(), "s.ks.beat")


def test_the_producer_tells_its_batches() -> None:
    assert all(f'<logger name="{name}" level="TRACE"/>' in logging_text() for name in LOGGERS)


def test_a_row_counts_after_a_look_that_began_when_it_was_back() -> None:
    beats = Beats()
    beats.written(100, life=1)
    beats.returned(100, 7, life=1, now_s=5.0)
    assert beats.looked(4.9, 1, {}, 7)
    assert beats.waiting(1) == []
    assert beats.looked(5.1, 1, {("t", 0): 3}, 7)
    assert beats.waiting(1) == [(100, {("t", 0): 3})]
    beats.passed(100)
    assert beats.waiting(1) == []


def test_rows_of_another_life_or_of_somebody_else_say_nothing() -> None:
    beats = Beats()
    beats.written(100, life=1)
    beats.returned(99, 7, life=1, now_s=5.0)
    beats.returned(100, 7, life=2, now_s=5.0)
    beats.looked(6.0, 2, {}, None)
    assert beats.waiting(2) == []
    beats.written(200, life=2)
    beats.returned(200, 7, life=2, now_s=7.0)
    beats.looked(8.0, 3, {}, None)
    assert beats.waiting(3) == []


def test_rows_that_came_back_past_an_older_segment_do_not_count() -> None:
    beats = Beats()
    for at_us in (100, 200):
        beats.written(at_us, life=1)
        beats.returned(at_us, 7 if at_us == 100 else 8, life=1, now_s=5.0)
    assert not beats.looked(6.0, 1, {}, 7), "segment 7 waits, and a row came out of 8"
    assert beats.waiting(1) == [(100, {})]


def test_rows_that_never_come_back_are_forgotten() -> None:
    beats = Beats()
    for at_us in range(1, 2000):
        beats.written(at_us, life=1)
    beats.returned(1, 7, life=1, now_s=5.0)
    beats.looked(6.0, 1, {}, None)
    assert beats.waiting(1) == []


class OneBeat:
    """A sidecar that is sound and has sent everything."""

    def __init__(self) -> None:
        self.sidecar, self.deliveries = SimpleNamespace(sound=True, starts=1), Deliveries()
        note(self.deliveries, (BEGUN, "sky.sky.beat", 0), (ARRIVED, "sky.sky.beat", 0))

    def oldest_segment(self) -> int | None:
        return 7


@pytest.mark.parametrize("others", [0, 2])
async def test_a_cluster_of_several_nodes_is_not_spoken_for(others: int) -> None:
    async def other_nodes() -> int:
        return others

    session: Any = SimpleNamespace(other_nodes=other_nodes)
    config = CassandraConfig.model_validate({**SECTION, "heartbeat_table": "beat"})
    companion: Any = OneBeat()
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    heartbeat = Heartbeat(config, session, kafka, companion, SystemClock())
    heartbeat._beats.written(100, 1)
    heartbeat._beats.returned(100, 7, 1, 5.0)
    await heartbeat.looked(6.0)
    until_us, records = heartbeat.records()
    assert (until_us, [record.topic for record in records]) == ((0, []) if others else (100, ["sky.sky.weather"]))
    companion.sidecar.sound = False
    assert heartbeat.records() == (0, [])


SECTION: dict[str, Any] = {
    "name": "sky",
    "hosts": ["127.0.0.1"],
    "keyspace": "sky",
    "tables": ["weather"],
    "data_directory": "/nowhere",
    "sidecar": {"cassandra_yaml": "/nowhere/cassandra.yaml"},
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"heartbeat_table": "other.beat"}, "is no name of a table of sky"),
        ({"heartbeat_table": "a b"}, "is no name of a table of sky"),
        ({"heartbeat_table": "sky.weather"}, "is captured; it needs a table of its own"),
        ({"heartbeat_table": "beat", "sidecar": None}, "without sidecar no heartbeat comes back"),
    ],
)
def test_a_heartbeat_table_that_can_not_work_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CassandraConfig.model_validate({**SECTION, **changed})


@pytest.mark.parametrize("written", ["beat", "sky.beat"])
def test_a_heartbeat_table_is_named_with_or_without_its_keyspace(written: str) -> None:
    config = CassandraConfig.model_validate({**SECTION, "heartbeat_table": written})
    assert config.heartbeat_name == "beat" and config.data_directory == Path("/nowhere")
