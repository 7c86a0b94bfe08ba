"""What a look makes of Cassandra's files and of Scylla's generations and times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.node_watch import OnDisk, disk_findings, look_at_disk, node_name
from connectors.cassandra.segments import MIB, NodeFiles, Picture, node_files
from connectors.scylla.config import US, ScyllaConfig
from connectors.scylla.generations import Told
from connectors.scylla.log_watch import SeenLog, log_findings, log_health, slowest
from connectors.scylla.progress import TableProgress
from connectors.source import Finding

NOW_US = 1_700_000_000 * US
GENERATION_MS = NOW_US // 1000 - 86_400_000


def scylla(**settings: Any) -> ScyllaConfig:
    section = {"name": "gates", "hosts": ["h"], "keyspace": "ks", "tables": ["t", "u"], **settings}
    return ScyllaConfig.model_validate(section)


def seen(table: str = "t", ttl_s: int = 3600, **told: Any) -> SeenLog:
    full = {"seen_us": NOW_US, "clock_us": 0, "log_id": "a", "generations_ms": (GENERATION_MS,), **told}
    return SeenLog(table, Told(**full), ttl_s)


def read(age_s: float, **changes: Any) -> TableProgress:
    full = {"id": "a", "generation_ms": GENERATION_MS, "until_us": NOW_US - int(age_s * US), **changes}
    return TableProgress(**full)


def test_the_headroom_of_a_log_is_that_of_the_table_that_is_worst_off() -> None:
    logs = [seen(), seen("u", ttl_s=7200, generations_ms=(GENERATION_MS, GENERATION_MS + 5000))]
    health = log_health(scylla(), logs, {"t": read(40), "u": read(7000)})
    assert (health.unread_s, health.log_ttl_s, health.floor_s) == (7000, 3600, 30)
    assert health.headroom_s == 7200 - 60 - 7000  # a minute is left for reading
    assert health.generation_s == (GENERATION_MS + 5000) / 1000
    assert log_health(scylla(), logs, {"t": read(4000)}).headroom_s == 0
    forever = log_health(scylla(), [seen(ttl_s=0)], {"t": read(99_999)})
    assert forever.headroom_s is None and forever.log_ttl_s is None
    unread = log_health(scylla(), [seen(generations_ms=())], {})
    assert (unread.headroom_s, unread.unread_s, unread.generation_s) == (None, None, None)


@pytest.mark.parametrize(
    ("log", "progress", "moves", "severity", "words"),
    [
        (seen(), read(40), True, "", ""),
        (seen(), read(40), False, "", ""),
        (seen(), read(100), True, "note", "70 s before the confidence window, and moves"),
        (seen(), read(100), False, "unfit", "does not move"),
        (seen(), read(4000), False, "unfit", "it ended 460 s ago"),
        (seen(), read(40, generation_ms=1), True, "unfit", "not told any more"),
        (seen(), read(40, id="b"), True, "unfit", "made anew"),
        (seen(), None, True, "warning", "has not begun"),
        (seen(log_id=None), read(40), True, "unfit", "CDC is not enabled"),
        (seen(generations_ms=()), None, True, "warning", "no generation is told yet"),
    ],
)
def test_what_is_wrong_with_a_log_is_told(
    log: SeenLog, progress: TableProgress | None, moves: bool, severity: str, words: str
) -> None:
    findings = log_findings(scylla(), log, progress, moves=moves)
    assert [one.severity for one in findings] == ([severity] if severity else [])
    assert not findings or words in findings[0].message


def test_the_slowest_of_several_processes_counts_and_one_that_has_not_begun() -> None:
    fast, slow = ({"tables": {"t": read(age_s).stored()}} for age_s in (40, 90))
    assert slowest([fast, slow], ["t"])["t"].until_us == NOW_US - 90 * US
    assert slowest([fast, None], ["t"]) == {} and slowest([fast, {"connector": "reset"}], ["t"]) == {}


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    """Of cassandra.yaml."""
    raw = tmp_path / "cdc_raw"
    raw.mkdir()
    return {"cdc_enabled": True, "cdc_raw_directory": str(raw), "commitlog_directory": str(tmp_path / "commitlog")}


def cassandra(tmp_path: Path, node: dict[str, Any]) -> CassandraConfig:
    file = tmp_path / "cassandra.yaml"
    file.write_text(json.dumps(node))
    section = {"name": "sky", "hosts": ["h"], "keyspace": "ks", "tables": ["t"], "data_directory": str(tmp_path / "d")}
    return CassandraConfig.model_validate({**section, "sidecar": {"cassandra_yaml": str(file)}})


@pytest.mark.parametrize(
    ("settings", "sync_s"),
    [
        ({}, 10),
        ({"commitlog_sync_period": "500ms"}, 0.5),
        ({"commitlog_sync": "periodic", "commitlog_sync_period_in_ms": 2000}, 2),
        ({"commitlog_sync": "group", "commitlog_sync_group_window": "1s"}, 1),
        ({"commitlog_sync": "batch"}, 0),
    ],
)
def test_how_long_a_node_gathers_changes(
    settings: dict[str, Any], sync_s: float, tmp_path: Path, node: dict[str, Any]
) -> None:
    config = cassandra(tmp_path, {**node, **settings})
    assert config.sidecar is not None and node_files(config.sidecar.cassandra_yaml).sync_s == sync_s


def test_what_lies_on_the_nodes_disk_is_seen_only_there(tmp_path: Path, node: dict[str, Any]) -> None:
    config = cassandra(tmp_path, {**node, "listen_address": "10.0.0.7"})
    assert config.sidecar is not None
    disk = look_at_disk(config, config.sidecar)
    assert disk.files is not None and disk.picture is not None and disk.port == 0
    assert node_name(disk.files) == "10.0.0.7"
    config.data_directory.mkdir()
    (config.data_directory / "sidecar.properties").write_text("a=b\nhttp.port=8123\n")
    (config.data_directory / "segments.json").write_text('["CommitLog-7-1"]')
    disk = look_at_disk(config, config.sidecar)
    assert disk.port == 8123 and disk.lost == ["CommitLog-7-1"]
    said = disk_findings(config, config.sidecar, disk, healthy=None)
    assert any(one.severity == "unfit" and "deleted unread" in one.message for one in said)
    assert any("does not answer on port 8123" in one.message for one in said)
    assert [one.severity for one in disk_findings(config, config.sidecar, disk, None, 31)][-1] == "unfit"
    assert any("not healthy" in one.message for one in disk_findings(config, config.sidecar, disk, healthy=False))

    off = cassandra(tmp_path, {**node, "cdc_enabled": False})
    assert off.sidecar is not None
    (problem,) = disk_findings(off, off.sidecar, look_at_disk(off, off.sidecar), healthy=None)
    assert problem.severity == "unfit" and "cdc_enabled" in problem.message
    elsewhere = cassandra(tmp_path, {**node, "cdc_raw_directory": "/nowhere/cdc_raw"})
    assert elsewhere.sidecar is not None
    (note,) = disk_findings(elsewhere, elsewhere.sidecar, look_at_disk(elsewhere, elsewhere.sidecar), healthy=None)
    assert note.severity == "note" and "/nowhere/cdc_raw is not here" in note.message


def test_a_full_cdc_raw_says_what_becomes_of_it(tmp_path: Path) -> None:
    config = cassandra(tmp_path, {"cdc_enabled": True})
    assert config.sidecar is not None

    def fill(size_bytes: int, *, blocks: bool) -> Finding:
        files = NodeFiles(
            cdc_enabled=True,
            cdc_raw=tmp_path,
            commitlog=tmp_path,
            total_bytes=100 * MIB,
            segment_bytes=10 * MIB,
            blocks_writes=blocks,
        )
        assert config.sidecar is not None
        return disk_findings(config, config.sidecar, OnDisk(files, Picture([], size_bytes)), healthy=True)[0]

    assert fill(0, blocks=True).severity == "ok" and fill(60 * MIB, blocks=True).severity == "warning"
    assert "refuses writes" in fill(95 * MIB, blocks=True).message
    assert fill(95 * MIB, blocks=False).severity == "unfit" and "lost" in fill(95 * MIB, blocks=False).message
