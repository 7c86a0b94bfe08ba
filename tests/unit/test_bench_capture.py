"""`ctxpipe bench capture`: options that don't fit are told, and what part of a latency nobody could avoid."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.commands._bench_wide import Written, _spread, _visible
from pipeline.commands._bench_wide_tables import milliseconds
from pipeline.commands.bench_capture import command

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "mysql"], "'mysql' is not one of 'postgres', 'debezium', 'cassandra', 'scylla'"),
        (["--source", "cassandra", "--rows", "10"], "10 is not in the range x>=1000"),
        (["--source", "cassandra", "--dsn", "postgresql://x"], "--source cassandra takes --cassandra HOST:PORT"),
        (["--source", "scylla", "--against", "debezium"], "leave --source out"),
        (["--cassandra", "127.0.0.1:9042"], "--cassandra goes with --source cassandra or --source scylla"),
        (["--source", "cassandra", "--cassandra", "127.0.0.1:9042"], "--cassandra and --cassandra-yaml go together"),
        (["--source", "scylla", "--cassandra", "9042"], "--cassandra: '9042' is not host:port"),
        (["--source", "cassandra", "--kafka", "localhost"], "--kafka: 'localhost' is not host:port"),
        (["--source", "cassandra", "--confidence-window-s", "3"], "--confidence-window-s goes with --source scylla"),
        (["--source", "cassandra", "--cassandra-yaml", "/nowhere.yaml"], "'/nowhere.yaml' does not exist"),
    ],
)
def test_options_that_do_not_fit(options: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_a_write_is_visible_at_the_sync_after_it() -> None:
    synced = [0, SECOND, 2 * SECOND, 3 * SECOND]
    assert _visible(Written(SECOND // 2, SECOND // 2 + 5000, SECOND + 70_000), synced) == SECOND
    assert _visible(Written(SECOND - 9000, SECOND - 5000, 2 * SECOND + 70_000), synced) == 2 * SECOND
    assert _visible(Written(SECOND - 9000, SECOND - 5000, SECOND + 70_000), synced) == SECOND
    assert _visible(Written(SECOND - 9000, SECOND + 1000, SECOND + 70_000), synced) == SECOND, "in the middle of it"
    assert _visible(Written(SECOND + 1, SECOND + 2, SECOND + 3), [0]) == SECOND + 1, "it was seen in no sync"


def test_spread() -> None:
    assert _spread([number * 1000 for number in range(1, 101)]) == {"p50": 51, "p90": 91, "p99": 100, "max": 100}
    assert _spread([1500]) == {"p50": 1.5, "p90": 1.5, "p99": 1.5, "max": 1.5}


@pytest.mark.parametrize(
    ("said", "is_ms"), [("1000ms", 1000), ("10s", 10_000), ("10000", 10_000), (10000, 10_000), ("1m", None)]
)
def test_times_of_cassandra_yaml(said: object, is_ms: int | None) -> None:
    assert milliseconds(said) == is_ms
