"""The parts of the Cassandra source that need no server: ring, throttle, settings, config, rows, cdc_raw."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.cassandra import ring, segments
from connectors.cassandra.checks import table_findings
from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.node import Node, breaking_columns
from connectors.cassandra.plugin import PLUGIN
from connectors.cassandra.properties import Setup, command, driver_text, properties, properties_text
from connectors.cassandra.rows import RowReader
from connectors.cassandra.sidecar import Launch, Sidecar
from connectors.cassandra.throttle import Throttle
from connectors.cql.schema import Column, TableSchema
from connectors.cql.values import CqlType
from connectors.registry import configure_one
from pipeline.core.clock import SystemClock
from pipeline.core.errors import ConfigError, EnvironmentProblem
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


# ---- cdc_raw


@pytest.fixture
def files(tmp_path: Path) -> segments.NodeFiles:
    for name in ("raw", "log", "relocated/archive", "relocated/error"):
        (tmp_path / name).mkdir(parents=True)
    return segments.NodeFiles(
        cdc_enabled=True,
        cdc_raw=tmp_path / "raw",
        commitlog=tmp_path / "log",
        total_bytes=1000,
        segment_bytes=50,
        blocks_writes=True,
    )


def write_segment(files: segments.NodeFiles, number: int, index: str, size: int = 10, alive: bool = True) -> str:
    name = f"CommitLog-7-{number}"
    (files.cdc_raw / f"{name}.log").write_bytes(b"x" * size)
    (files.cdc_raw / f"{name}_cdc.idx").write_text(index)
    if alive:
        (files.commitlog / f"{name}.log").write_bytes(b"x" * size)
    return name


def test_segments_are_seen_as_the_node_left_them(files: segments.NodeFiles) -> None:
    write_segment(files, 30, "5")
    write_segment(files, 10, "9\nCOMPLETED", alive=False)
    write_segment(files, 20, "7", alive=False)
    (files.cdc_raw / "CommitLog-7-40_cdc.idx").write_text("1")  # its log is gone
    picture = segments.look(files)
    assert [(one.number, one.synced, one.completed, one.abandoned) for one in picture.segments] == [
        (10, 9, True, False),
        (20, 7, False, True),
        (30, 5, False, False),
    ]
    segments.complete(files, picture.segments[1])
    assert segments.look(files).segments[1].completed
    assert segments.unread_bytes(picture, {"CommitLog-7-10": 9, "CommitLog-7-20": 3}) == 4 + 5


@pytest.mark.parametrize(
    ("size", "blocks", "severity", "words"),
    [
        (100, True, "ok", "0 of 0 MiB (10%)"),
        (600, True, "warning", "the node refuses writes to these tables when it is full"),
        (960, True, "unfit", "the node refuses writes to these tables now"),
        (600, False, "warning", "deletes the oldest changes when it is full, and they are lost"),
        (960, False, "unfit", "deletes the oldest changes now"),
    ],
)
def test_a_full_cdc_raw_is_told_with_what_the_node_does(
    files: segments.NodeFiles, size: int, blocks: bool, severity: str, words: str
) -> None:
    policy = segments.NodeFiles(
        cdc_enabled=True,
        cdc_raw=files.cdc_raw,
        commitlog=files.commitlog,
        total_bytes=1000,
        segment_bytes=50,
        blocks_writes=blocks,
    )
    finding = segments.fill_finding(segments.Picture([], size), policy, 0.5)
    assert finding.severity == severity and words in finding.message


def test_a_segment_that_vanishes_unread_is_noticed_also_after_a_restart(
    files: segments.NodeFiles, tmp_path: Path
) -> None:
    ledger = segments.Ledger(tmp_path / "segments.json")
    assert ledger.compare(["a", "b", "c"], []) == []
    assert ledger.compare(["b", "c"], ["a"]) == []
    ledger.done(["a"])
    again = segments.Ledger(tmp_path / "segments.json")
    assert again.compare(["c"], []) == ["b"] and again.compare(["c"], []) == ["b"]
    again.forget()
    assert segments.Ledger(tmp_path / "segments.json").compare(["c", "d"], []) == []


def test_what_was_moved_aside_comes_back_or_is_deleted(files: segments.NodeFiles, tmp_path: Path) -> None:
    relocated = tmp_path / "relocated"
    names = [write_segment(files, number, "1\nCOMPLETED") for number in (1, 2)]
    for folder, name in zip(("archive", "error"), names, strict=True):
        for path in list(files.cdc_raw.glob(f"{name}*")):
            path.rename(relocated / folder / path.name)
    assert segments.relocated_names(relocated) == names and segments.look(files).segments == []
    segments.delete(relocated, names[:1])
    assert segments.bring_back(relocated, files) == names[1:]
    assert [one.name for one in segments.look(files).segments] == names[1:]


def test_cassandra_yaml_tells_the_directories_in_both_spellings_of_sizes(tmp_path: Path) -> None:
    path = tmp_path / "cassandra.yaml"
    where = {"cdc_raw_directory": str(tmp_path / "raw"), "commitlog_directory": str(tmp_path / "log")}
    path.write_text(json.dumps({**where, "cdc_enabled": True, "cdc_total_space": "2GiB", "cdc_block_writes": False}))
    files = segments.node_files(path)
    assert files.cdc_enabled and not files.blocks_writes and files.total_bytes == 2 << 30
    assert files.segment_bytes == 32 << 20
    path.write_text(json.dumps({**where, "cdc_total_space_in_mb": 3}))
    assert segments.node_files(path).total_bytes == 3 << 20 and not segments.node_files(path).cdc_enabled
    path.write_text("{}")
    with pytest.raises(EnvironmentProblem, match="cdc_raw_directory to a default"):
        segments.node_files(path)
    assert segments.node_files(path, tmp_path, tmp_path).total_bytes > 0
    with pytest.raises(EnvironmentProblem, match="can't be read"):
        segments.node_files(tmp_path / "missing.yaml")


# ---- the sidecar as a process


def a_sidecar(tmp_path: Path, script: str, read: list[str] | None = None, **changed: Any) -> Sidecar:
    known: dict[str, Any] = {
        "command": [sys.executable, "-u", "-c", script],
        "log_file": tmp_path / "sidecar.log",
        "http_port": 1,
        "deaths_max": 3,
        "restart_delay_s": 0.01,
        "health_interval_s": 60.0,
        "before": lambda: None,
        "on_read": (read if read is not None else []).append,
    }
    return Sidecar(Launch(**{**known, **changed}), SystemClock())


async def test_one_that_keeps_dying_ends_with_its_last_words(tmp_path: Path) -> None:
    starts: list[int] = []
    script = "print('no such node'); raise SystemExit(7)"
    sidecar = a_sidecar(tmp_path, script, before=lambda: starts.append(1))
    with pytest.raises(EnvironmentProblem) as told:
        await sidecar.run()
    assert "died 3 times: exit code 7" in str(told.value) and "| no such node" in str(told.value)
    assert len(starts) == 3 and (tmp_path / "sidecar.log").read_text().count("no such node") == 3


async def test_one_that_goes_on_without_what_it_could_not_read_is_ended(tmp_path: Path) -> None:
    script = (
        "import time; print('ERROR CommitLogIdxParser Processing of x errored out');"
        "print('Caused by: java.lang.ClassCastException: no cell'); time.sleep(600)"
    )
    with pytest.raises(EnvironmentProblem, match="ClassCastException: no cell"):
        await a_sidecar(tmp_path, script, deaths_max=1).run()


async def test_one_that_does_not_know_a_table_is_ended_before_it_passes_over_its_changes(tmp_path: Path) -> None:
    script = (
        "import time; print('INFO SchemaHolder Added the schema for ks.a to table schema cache.');"
        "print('INFO Task Starting processor group ...'); time.sleep(600)"
    )
    sidecar = a_sidecar(tmp_path, script, deaths_max=1, tables=frozenset({"ks.a", "ks.b"}))
    with pytest.raises(EnvironmentProblem, match=r"it does not know ks\.b"):
        await sidecar.run()


async def test_it_is_started_again_on_request_and_that_is_no_death(tmp_path: Path) -> None:
    read: list[str] = []
    script = "import time; print('Finished reading /raw/CommitLog-7-12.log'); time.sleep(600)"
    sidecar = a_sidecar(tmp_path, script, read, deaths_max=1)
    running = asyncio.create_task(sidecar.run())
    for starts in (1, 2, 3):
        while sidecar.starts < starts or len(read) < starts:
            assert not running.done()
            await asyncio.sleep(0.01)
        sidecar.restart("the schema changed")
    assert read[:3] == ["CommitLog-7-12"] * 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
