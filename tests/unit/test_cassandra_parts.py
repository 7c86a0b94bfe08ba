"""The parts of the Cassandra source that need no server: ring, throttle, settings, config, rows, positions, checks."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.cassandra import ring
from connectors.cassandra.checks import table_findings
from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.node import Node, breaking_columns
from connectors.cassandra.plugin import PLUGIN
from connectors.cassandra.properties import Setup, command, driver_text, properties, properties_text
from connectors.cassandra.rows import RowReader
from connectors.cassandra.source import CassandraSource
from connectors.cassandra.throttle import Throttle
from connectors.cql.schema import Column, TableSchema
from connectors.cql.values import CqlType
from connectors.registry import configure_one
from pipeline.core.errors import ConfigError, PositionLost
from schemas.mutation import Cell, Elements, Marker

NODE = Node("ctxpipe", "5.0.4", "datacenter1", "org.apache.cassandra.dht.Murmur3Partitioner", "n1")
SECTION: dict[str, Any] = {
    "connector": "cassandra",
    "hosts": ["10.0.0.1"],
    "keyspace": "ks",
    "tables": ["weather"],
    "data_directory": "somewhere",
}


class StillClock:
    """Sleeping is what moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now_us(self) -> int:
        return int(self.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


# ---- ring and throttle


@given(st.integers(1, 4096))
def test_the_ranges_cover_the_ring_once(count: int) -> None:
    ranges = ring.split(count)
    assert len(ranges) == count and ranges[0].after == ring.TOKEN_MIN and ranges[-1].until == ring.TOKEN_MAX
    assert all(left.until == right.after for left, right in pairwise(ranges))
    assert all(one.after < one.until for one in ranges)


@given(st.sets(st.integers(0, 4095)))
def test_what_is_left_comes_back_from_a_position(left: set[int]) -> None:
    assert ring.numbers(json.loads(json.dumps(ring.runs(left)))) == left


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 100)), min_size=1, max_size=30))
def test_the_throttle_keeps_its_rate_whatever_the_pauses(pages: list[tuple[int, int]]) -> None:
    async def run() -> None:
        clock = StillClock()
        throttle = Throttle(1000, clock)
        for rows, pause_ms in pages:
            clock.now_s += pause_ms / 1000
            await throttle.take(rows)
        total = sum(rows for rows, _ in pages)
        assert clock.now_s >= total / 1000 - 0.1 - 1e-6  # but for one burst

    asyncio.run(run())


# ---- config and settings


def test_mistakes_of_a_section_are_told_at_once_and_without_the_password() -> None:
    section = {**SECTION, "tables": ["a.b", "c"], "pasword": "hush", "password": "hush", "consistency": "SOME"}
    with pytest.raises(ConfigError) as told:
        configure_one(PLUGIN, "w", section)
    assert "sources.w.pasword: unknown key; did you mean password?" in str(told.value)
    assert any(one.startswith("sources.w.consistency") for one in told.value.mistakes) and "hush" not in str(told.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tables": ["other.weather"]}, "other keyspaces than ks"),
        ({"tables": ["weather", "ks.weather"]}, "twice"),
        ({"tables": ["no table"]}, "no names of tables"),
        ({"sidecar": {"cassandra_yaml": "c.yaml", "producer": {"acks": "0"}}}, "losing nothing depends on it"),
    ],
)
def test_a_section_that_can_not_work_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configure_one(PLUGIN, "w", {**SECTION, **changed})


def test_topics_are_those_of_debezium_and_keep_everything() -> None:
    configured = configure_one(PLUGIN, "w", {**SECTION, "tables": ["ks.weather", "place"]})
    assert configured.topics() == ["w.ks.weather", "w.ks.place"] and configured.keeps_all
    assert PLUGIN.problems() == [] and "snapshot on request" in PLUGIN.abilities()


def a_setup(directory: Path, **changed: Any) -> Setup:
    known: dict[str, Any] = {
        "source": "w",
        "keyspace": "ks",
        "hosts": ["10.0.0.1", "10.0.0.2"],
        "port": 9042,
        "user": "",
        "password": "",
        "datacenter": "dc1",
        "cluster": "Test Cluster",
        "node": "n1",
        "cassandra_yaml": directory / "cassandra.yaml",
        "directory": directory,
        "bootstrap_servers": "k:9092",
        "http_port": 18000,
        "poll_interval_ms": 500,
    }
    return Setup(**{**known, **changed})


def test_the_sidecar_snapshots_nothing_deletes_nothing_and_never_gives_a_record_up(tmp_path: Path) -> None:
    settings = properties(a_setup(tmp_path, producer={"security.protocol": "SSL"}))
    assert settings["snapshot.mode"] == "NEVER" and settings["commit.log.real.time.processing.enabled"] == "true"
    assert settings["commit.log.post.processing.enabled"] == "false"
    assert settings["decimal.handling.mode"] == settings["varint.handling.mode"] == "STRING"
    assert settings["kafka.producer.acks"] == "all" and settings["kafka.producer.security.protocol"] == "SSL"
    assert int(settings["kafka.producer.delivery.timeout.ms"]) > 2_000_000_000
    assert settings["topic.prefix"] == "w"
    assert int(settings["poll.interval.ms"]) < 100, "a change alone is not held back"


def test_values_survive_the_form_of_java_properties() -> None:
    text = properties_text({"a": " x\\y\nz=ü😀"})
    assert text == "a=\\ x\\\\y\\u000az=\\u00fc\\ud83d\\ude00\n"


def test_a_login_is_in_the_drivers_settings_and_nowhere_on_the_command_line(tmp_path: Path) -> None:
    setup = a_setup(tmp_path, user="reader", password='hu"sh')
    driver = json.loads(driver_text(setup))["datastax-java-driver"]
    assert driver["advanced"]["auth-provider"]["password"] == 'hu"sh'
    assert driver["basic"]["contact-points"] == ["10.0.0.1:9042", "10.0.0.2:9042"]
    assert driver["basic"]["load-balancing-policy"]["local-datacenter"] == "dc1"
    assert not any("hu" in word for word in command(setup, "java", Path("sidecar.jar"), 256))


# ---- rows


def column(name: str, declared: str, kind: CqlType, role: str = "regular", position: int = 0) -> Column:
    multi_cell = declared.startswith(("list<", "set<", "map<")) or (kind.name == "udt" and "frozen" not in declared)
    return Column(name, role, position, False, declared, kind, multi_cell)


INT, TEXT = CqlType("int"), CqlType("text")
ADDRESS = CqlType("udt", (TEXT, INT), ("street", "zip"))


def a_table(*columns: Column) -> TableSchema:
    key = (column("id", "int", INT, "partition_key"), column("ck", "int", INT, "clustering"))
    return TableSchema("ks", "t", "1", (*key, *columns))


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "big", signed=True)


def collection(*items: bytes | None) -> bytes:
    pieces = [struct.pack(">i", -1) if item is None else struct.pack(">i", len(item)) + item for item in items]
    return b"".join(pieces)


def listed(*items: bytes | None) -> bytes:
    return struct.pack(">i", len(items)) + collection(*items)


def read(table: TableSchema, *values: bytes | None, element_times: bool = True) -> Any:
    row: Sequence[bytes | None] = [number(1), number(2), *values, number(1_000_900, 8)]
    return RowReader(table, element_times).mutation(row)


def test_cells_keep_their_own_times_and_the_marker_the_smallest() -> None:
    table = a_table(column("a", "text", TEXT), column("b", "text", TEXT), column("c", "text", TEXT))
    life = number(60)
    key, mutation = read(table, b"x", number(50, 8), None, b"y", number(40, 8), life, None, None, None)
    assert key == {"id": 1, "ck": 2}
    assert mutation.cells == {"a": Cell(50, "x"), "b": Cell(40, "y", 1_060_000_000)}
    assert mutation.marker == Marker(40)


def test_a_row_whose_cells_all_expire_does_so_with_the_last_of_them() -> None:
    table = a_table(column("a", "text", TEXT), column("b", "text", TEXT))
    _, mutation = read(table, b"x", number(5, 8), number(60), b"y", number(5, 8), number(90))
    assert mutation.marker == Marker(5, 1_090_000_000)


def test_a_row_without_cells_has_the_oldest_marker_and_a_partition_without_rows_none() -> None:
    table = a_table(column("a", "text", TEXT))
    assert read(table, None, None, None)[1].marker == Marker(1)
    assert RowReader(table).mutation([number(1), None, None, None, None, number(0, 8)]) is None


def test_elements_have_times_of_their_own() -> None:
    kind = CqlType("map", (TEXT, INT))
    table = a_table(column("m", "map<text, int>", kind))
    value = struct.pack(">i", 2) + collection(b"k", number(7), b"q", number(8))
    times, lives = listed(number(30, 8), number(20, 8)), listed(None, number(60))
    _, mutation = read(table, value, times, lives)
    assert mutation.cells["m"] == Elements("map", (("k", Cell(30, 7)), ("q", Cell(20, 8, 1_060_000_000))))
    assert mutation.marker == Marker(20)


def test_sets_lists_and_types_name_their_elements() -> None:
    table = a_table(
        column("s", "set<text>", CqlType("set", (TEXT,))),
        column("l", "list<int>", CqlType("list", (INT,))),
        column("u", "address", ADDRESS),
    )
    times = listed(number(9, 8), number(9, 8))
    found = read(
        table,
        *(listed(b"x", b"y"), times, listed(None, None)),
        *(listed(number(5), number(6)), times, listed(None, None)),
        *(collection(b"road", None), listed(number(9, 8), None), listed(None, None)),
    )[1].cells
    assert found["s"].elements == (("x", Cell(9, True)), ("y", Cell(9, True)))
    places = [key for key, _ in found["l"].elements]
    assert [cell.value for _, cell in found["l"].elements] == [5, 6] and places == sorted(places)
    assert found["u"] == Elements("udt", (("street", Cell(9, "road")),))


def test_without_times_of_elements_they_are_the_oldest() -> None:
    table = a_table(column("s", "set<text>", CqlType("set", (TEXT,))))
    assert "WRITETIME" not in RowReader(table, False).query() and "WRITETIME" in RowReader(table).query()
    assert read(table, listed(b"x"), element_times=False)[1].cells["s"].elements == (("x", Cell(1, True)),)


# ---- positions


def left_after(position: Any, **changed: Any) -> Any:
    source = CassandraSource(CassandraConfig.model_validate({**SECTION, "name": "w", "snapshot_ranges": 4, **changed}))
    source._tables = {"weather": a_table()}
    found = source._resumed(position)
    return found["weather"]


def test_a_snapshot_reads_what_its_position_leaves() -> None:
    stored = {"snapshot": "initial", "ids": {"weather": "1"}, "ranges": 4, "left": {"weather": [[1, 2]]}}
    done = {**stored, "left": {}}
    assert left_after(None) == {0, 1, 2, 3} and left_after(stored) == {1, 2} and left_after(done) == set()
    assert left_after({**done, "ids": {}}) == {0, 1, 2, 3}  # a table that was added
    assert left_after({**stored, "ranges": 8}) == {0, 1, 2, 3} and left_after({**done, "ranges": 8}) == set()
    assert left_after({"reset": True}) == {0, 1, 2, 3}
    with pytest.raises(PositionLost, match=r"ks\.weather was dropped and made anew"):
        left_after({**done, "ids": {"weather": "2"}})


def test_a_source_of_another_node_reads_nothing_and_does_not_stand_in_for_the_one_that_does() -> None:
    initial = {"snapshot": "initial", "ids": {"weather": "1"}, "ranges": 4, "left": {"weather": [[1, 2]]}}
    never = {"snapshot": "never", "ids": {"weather": "1"}, "ranges": 4, "left": {}}
    for position in (None, initial, never, {**never, "ids": {}}):
        assert left_after(position, snapshot="never") == set()
    assert left_after(never) == {0, 1, 2, 3}


# ---- checks of a table


def findings_of(table: TableSchema, cdc: bool = True, node: Node = NODE) -> list[tuple[str, str]]:
    config = CassandraConfig.model_validate({**SECTION, "name": "w"})
    return [(one.severity, f"{one.message} {one.mend}") for one in table_findings(table, cdc, node, config)]


def test_a_table_without_cdc_is_told_with_the_statement_that_mends_it() -> None:
    ((severity, text),) = findings_of(a_table(column("a", "text", TEXT)), cdc=False)
    assert severity == "unfit" and 'ALTER TABLE "ks"."t" WITH cdc = true;' in text


@pytest.mark.parametrize(
    ("found", "severity", "words"),
    [
        (column("u", "address", ADDRESS), "unfit", "u address: types that the sidecar can't send"),
        (column("l", "frozen<list<blob>>", CqlType("list", (CqlType("blob"),))), "warning", "l: blobs inside"),
        (column("s", "set<text>", CqlType("set", (TEXT,))), "warning", "added, removed or are all"),
        (column("st", "text", TEXT, "static"), "note", "static columns are not captured"),
        (column("x", "novel", CqlType("novel")), "unfit", "x novel"),
        (column("n", "counter", CqlType("counter")), "unfit", "counters"),
    ],
)
def test_columns_that_can_not_be_captured_are_told(found: Column, severity: str, words: str) -> None:
    assert any(one == severity and words in text for one, text in findings_of(a_table(found)))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (CqlType("list", (ADDRESS,)), True),
        (CqlType("map", (TEXT, CqlType("list", (INT,)))), True),
        (CqlType("tuple", (INT, CqlType("set", (TEXT,)))), True),
        (CqlType("udt", (CqlType("list", (ADDRESS,)),), ("l",)), True),
        (CqlType("list", (CqlType("map", (TEXT, CqlType("list", (INT,)))),)), True),
        (CqlType("list", (CqlType("list", (CqlType("decimal"),)),)), False),
        (CqlType("map", (TEXT, CqlType("list", (ADDRESS,)))), False),
        (CqlType("set", (CqlType("set", (INT,)),)), False),
        (CqlType("tuple", (CqlType("map", (TEXT, CqlType("list", (CqlType("uuid"),)))),)), False),
    ],
)
def test_nested_types_that_debezium_converts_only_outside_are_refused(kind: CqlType, sent: bool) -> None:
    """As seen on Debezium's connector 3.4.1 for Cassandra 5."""
    assert (breaking_columns(a_table(column("x", "frozen<…>", kind))) == []) == sent


def test_an_older_server_does_not_tell_the_times_of_elements() -> None:
    table = a_table(column("s", "set<text>", CqlType("set", (TEXT,))))
    old = Node("c", "4.1.9", "dc", NODE.partitioner, "n")
    assert any("does not tell when elements were written" in text for _, text in findings_of(table, node=old))
