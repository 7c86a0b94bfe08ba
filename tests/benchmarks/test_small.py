"""Every benchmark runs small with the tests, so that none of them rots; figures are printed, never asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.local.cassandra import CassandraServer

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]


def _bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, 0o755)
    command = [sys.executable, "-m", "pipeline.cli", "bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    return dict(result)


def test_apply(tmp_path: Path) -> None:
    result = _bench(tmp_path, "apply", "--rows", "2000")
    assert result["events"] == 2000
    assert set(result) >= {"events_per_s", "rss_mib", "round_trips_per_batch", "writes_per_event"}
    assert result["events_per_s"] > 0
    assert 1 < result["round_trips_per_batch"] < 30
    assert 1 <= result["writes_per_event"] < 3


def test_freshness(tmp_path: Path) -> None:
    result = _bench(tmp_path, "freshness", "--rate", "100", "--changes", "200", "--rows", "1000", "--warm-up", "1")
    assert set(result) >= {"p50_ms", "p99_ms"}
    assert result["not_seen"] == 0
    assert result["timed"] > 50


def test_read_your_writes(tmp_path: Path) -> None:
    result = _bench(tmp_path, "read-your-writes", "--writes", "200", "--in-flight", "20", "--rows", "1000")
    assert (result["writes"], result["wrong_fresh"], result["first_errors"]) == (200, 0, [])
    assert result["fresh"] + result["not_fresh"] == 200


def test_freshness_of_searches(tmp_path: Path) -> None:
    arguments = ["--vector", "--rate", "20", "--changes", "100", "--rows", "1000", "--warm-up", "1"]
    result = _bench(tmp_path, "freshness", *arguments)
    assert (result["timed"], result["not_found"]) == (100, 0)
    assert set(result) >= {"p50_ms", "p95_ms", "p99_ms", "slowest_ms", "engine_p50_ms", "searches", "environment"}
    assert list(result["stages_ms"]) == [
        "row_in_kafka", "bundle_in_redis", "text_in_kafka", "vector_in_kafka", "found",
    ]  # fmt: skip
    assert result["stages_ms"]["found"]["p50"] > 0, "times of the stages were found in Kafka"


def test_search(tmp_path: Path) -> None:
    arguments = ["--vectors", "600", "--real", "400", "--queries", "40", "--duration-s", "2", "--updates-per-s", "50"]
    result = _bench(tmp_path, "search", *arguments)
    assert (result["vectors"], result["real_texts"]) == (600, 400)
    assert set(result) >= {"recall_at_10", "p50_ms", "p99_ms", "p99_9_ms", "memory_mib", "environment"}
    assert result["recall_at_10"] == result["recall_at_10_after_updates"] == 1.0, "so few are all compared"
    assert result["updates"] > 0 and result["searches"] > 0


@pytest.mark.parametrize("source", ["cassandra", "scylla"])
def test_capture_of_wide_columns(
    source: str, cassandra_server: CassandraServer, kafka_bootstrap: str, tmp_path: Path
) -> None:
    servers = ["--kafka", kafka_bootstrap, "--cassandra", cassandra_server.address]
    servers += ["--cassandra-yaml", str(cassandra_server.config_file)]
    window = ["--confidence-window-s", "0.5"] if source == "scylla" else []
    result = _bench(tmp_path, "capture", "--source", source, "--rows", "1000", *servers, *window)
    assert result["source"] == source and result["changes"] == 100
    rates = ("snapshot_rows_per_s", "stream_rows_per_s", "bare_rows_per_s", "snapshot_vs_bare_reading")
    assert all(result[name] > 0 for name in (*rates, "stream_vs_bare_reading"))
    floor_ms = result["confidence_window_ms"] if source == "scylla" else 0
    assert set(result["own_share_ms"]) == set(result["latency_ms"]) == {"p50", "p90", "p99", "max"}
    assert result["latency_ms"]["p50"] > floor_ms and result["own_share_ms"]["max"] > 0
    if source == "cassandra":
        assert 0 < result["sync_wait_ms"]["p50"] < 2 * result["commitlog_sync_period_ms"]


def test_lag(kafka_bootstrap: str, tmp_path: Path) -> None:
    small = ["--partitions", "50", "--records", "20", "--samples", "2", "--bootstrap-servers", kafka_bootstrap]
    result = _bench(tmp_path, "lag", *small)
    assert (result["partitions"], result["known"]) == (50, 50), "the age of each is known"
    assert 0 < result["cpu_s"]["median"] <= result["cpu_s"]["greatest"]
    assert set(result) >= {"idle_cpu_s", "wall_s", "environment"}


LOAD_KEYS = {"answers_per_s", "p50_ms", "p99_ms", "p99_9_ms", "lateness_ms", "codes", "statuses", "rungs", "refused"}


def test_lookup(tmp_path: Path) -> None:
    report = tmp_path / "lookup.json"
    report.write_text('{"curve": {}}')
    arguments = ["lookup", "--rows", "1000", "--seconds", "0.2", "--rounds", "1", "--without-feast"]
    result = _bench(tmp_path, *arguments, "--report", str(report))
    assert json.loads(report.read_text()) == {"curve": {}, "compared": result}
    ratios = {"http_p50_vs_bare", "http_rps_vs_bare", "direct_rps_vs_redis_py", "near_hit_p99_us", "environment"}
    assert set(result) >= {*ratios, "rps_vs_feast", "p50_vs_feast", "p99_vs_feast"}
    assert result["feast"] == "not asked for" and result["rps_vs_feast"] is None
    assert set(result["loads"]) == {"http", "bare", "http_without_near"}
    assert {tuple(one["share"] for one in loads) for loads in result["loads"].values()} == {(0.5, 0.8, 1.0, 1.2)}
    for load in result["loads"]["http"]:
        assert load["requests"] > 0 and set(load) >= LOAD_KEYS
        assert load["unlabelled"] == load["codes"].get("timed out", 0) + load["codes"].get("connection lost", 0)
    assert set(result["in_process"]["redis_py"]["came"]) == set(result["in_process"]["wire"]["came"]) == {"found"}
    assert min(result["capacities_per_s"].values()) > 0
    assert result["updates"]["applied"] > 0


def test_lookup_inside_a_budget(tmp_path: Path) -> None:
    result = _bench(tmp_path, "lookup", "--rows", "1000", "--seconds", "0.5", "--budget-ms", "10")
    assert {name for name in ("busy", "too_much") if result[name]["requests"] > 0} == {"busy", "too_much"}
    assert set(result["busy"]) >= {*LOAD_KEYS, "within_budget", "admitted_within_budget", "refused_share", "server_ms"}
    frozen = result["frozen"]
    assert frozen["while_frozen"]["requests"] > 0, "requests came while Redis stood still"
    assert set(frozen["while_frozen"]["rungs"]) - {"store"} or frozen["while_frozen"]["statuses"].get("fallback")
    assert set(frozen) >= {"latest_ms", "later_than_allowed", "first_from_store_s", "quiet_again_s", "lateness_ms"}


def test_lookup_curve(tmp_path: Path) -> None:
    result = _bench(tmp_path, "lookup", "--rows", "10000", "--seconds", "0.2", "--curve")
    assert [point["bundles"] for point in result["curve"]] == [1_000, 10_000]
    for point in result["curve"]:
        assert point["redis_bytes_per_bundle"] > point["bundle_bytes"] > 500
        assert point["http"]["requests"] > 0 and point["direct"]["per_s"] > 0
