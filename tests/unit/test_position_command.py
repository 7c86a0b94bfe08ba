"""`ctxpipe position` where no database has to be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from schemas.position import position_of

CONFIG = """
kafka: {bootstrap_servers: "127.0.0.1:9"}
redis: {url: "redis://127.0.0.1:9/0"}
sources:
  shop: {connector: postgres, dsn: "postgresql://u@127.0.0.1:9/shop", slot: s, tables: [public.t]}
  iot: {connector: scylla, hosts: [127.0.0.1], keyspace: k, tables: [t]}
  files: {connector: debezium}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "ctxpipe.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_a_write_time(config: str, capsys: Any) -> None:
    assert run(["position", "iot", "--time-us", "1234", "--json", "--config", config]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"source": "iot", "position": shown["position"], "time_us": 1234}
    assert run(["position", "iot", "--time-us", "1234", "--config", config]) == 0
    token = capsys.readouterr().out.strip()
    assert token == shown["position"] and position_of(token).value == 1234
    assert run(["position", "iot", "--config", config]) == 0
    assert position_of(capsys.readouterr().out.strip()).value > 1_700_000_000_000_000


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nothing"], 2, "no source 'nothing'"),
        (["shop", "--lsn", "x/y"], 2, "--lsn: 'x/y' is no LSN; it looks like 16/B374D848"),
        (["shop", "--time-us", "5"], 2, "source shop is Postgres: a position there is an LSN"),
        (["iot", "--lsn", "0/5"], 2, "source iot is scylla: a position there is a write time"),
        (["files"], 2, "source files (connector debezium) has no positions"),
        (["shop"], 3, "Postgres 127.0.0.1:9/shop"),
    ],
)
def test_what_it_tells(config: str, capsys: Any, arguments: list[str], code: int, told: str) -> None:
    assert run(["position", *arguments, "--config", config]) == code
    shown = capsys.readouterr()
    assert told in shown.err and not shown.out
