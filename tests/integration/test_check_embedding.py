"""What `ctxpipe check` says of a context's embedding, on a real Postgres with rows in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from pipeline import cli

pytestmark = pytest.mark.servers

CONTEXT = {
    "context": "flight",
    "version": 1,
    "root": "flight",
    "entities": {
        "flight": {"source": "nyc", "table": "public.flights", "key": ["id"], "filter": "id < 100"},
        "airline": {"source": "nyc", "table": "public.airlines", "key": ["carrier"]},
        "plane": {"source": "nyc", "table": "public.planes", "key": ["tailnum"]},
    },
    "fields": ["id", "seats"],
    "sections": {
        "airline": {"entity": "airline", "on": {"carrier": "carrier"}, "fields": ["name"], "compose": "link"},
        "plane": {"entity": "plane", "on": {"tailnum": "tailnum"}, "fields": ["tailnum"], "compose": "copy"},
    },
    "text": {"template": "{% if id == 7 %}{{ 1 / 0 }}{% endif %}flight of {{ airline.name }}"},
    "embedding": {"engine": "hash", "dimension": 16, "gate": {"evaluation": "queries.jsonl"}},
}


@pytest.fixture
def config_path(tmp_path: Path, redis_url: str, kafka_bootstrap: str, postgres_dsn: str) -> Path:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE flights (id int PRIMARY KEY, seats int, carrier text, tailnum text)")
        connection.execute("CREATE TABLE airlines (carrier text PRIMARY KEY, name text)")
        connection.execute("CREATE TABLE planes (tailnum text PRIMARY KEY)")
        connection.execute("INSERT INTO airlines VALUES ('UA', 'United Air Lines'), ('HA', 'Hawaiian')")
        connection.execute("INSERT INTO flights SELECT i, 5, CASE WHEN i > 38 THEN 'HA' ELSE 'UA' END, i FROM "
                           "generate_series(1, 40) AS i")  # fmt: skip
        connection.execute("INSERT INTO flights VALUES (1000, 5, 'UA', 'x')")
    source = {
        "connector": "postgres",
        "dsn": postgres_dsn,
        "tables": ["public.flights", "public.airlines", "public.planes"],
    }
    config = {
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "redis": {"url": redis_url},
        "sources": {"nyc": source},
        "contexts": ["flight.yaml"],
    }
    (tmp_path / "queries.jsonl").write_text('{"query": "united", "relevant": ["1", "2"]}\n')
    path = tmp_path / "ctxpipe.yaml"
    path.write_text(yaml.safe_dump(config))
    write(tmp_path, CONTEXT)
    return path


def write(folder: Path, context: dict[str, Any]) -> None:
    (folder / "flight.yaml").write_text(yaml.safe_dump(context))


def check(path: Path, capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.run(["check", *words, "--config", str(path)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return code, shown.out, shown.err


def test_space_fan_out_cost_and_mistakes_of_the_template_are_told(config_path: Path, capsys: Any) -> None:
    _, out, _ = check(config_path, capsys, "--json")
    found = json.loads(out)
    (embedding,) = found["embeddings"]
    assert len(embedding["space"]) == 12
    assert embedding["sections"] == [
        {
            "section": "airline",
            "composition": "link",
            "embeddings_per_change": 20.5,
            "embeddings_per_change_max": 39,
        }
    ], "the plane is not in the text"
    estimate = embedding["estimate"]
    assert (estimate["texts"], estimate["cost"]) == (40, 0.0), "the filter counts"
    assert 100 < estimate["tokens"] < 250 and estimate["rate_per_s"] > 0
    told = [(one["severity"], one["message"]) for one in found["findings"] if "embedding" in one["subject"]]
    assert ("ok", f"space {embedding['space']}: a worker's start begins it") in told
    assert ("ok", "1 queries with 2 labels") in told
    assert any(severity == "warning" and "fails on 1 of" in message for severity, message in told)
    assert any("all 40 texts" in message and "cost 0" in message for _, message in told)
    _, out, _ = check(config_path, capsys)
    assert "embedding   flight.airline (link): a change of one row is 20.5 embeddings on average, 39 at worst" in out


def test_a_broken_gate_and_a_model_that_is_not_there_are_unfit(config_path: Path, capsys: Any) -> None:
    (config_path.parent / "queries.jsonl").write_text("x\n")
    code, out, _ = check(config_path, capsys)
    assert code == 1 and "queries.jsonl:1" in out
    write(config_path.parent, {**CONTEXT, "embedding": {"engine": "onnx", "model": "no-such-model"}})
    code, out, _ = check(config_path, capsys, "--json")
    assert code == 1
    unfit = [one["message"] for one in json.loads(out)["findings"] if one["subject"] == "context flight: embedding"]
    assert len(unfit) == 1 and "no-such-model" in unfit[0]


def test_a_field_that_is_not_there_is_a_mistake_with_its_line(config_path: Path, capsys: Any) -> None:
    write(config_path.parent, {**CONTEXT, "embedding": {"engine": "hash", "filters": ["seat"]}})
    code, _, err = check(config_path, capsys)
    assert code == 2 and "embedding.filters" in err and "did you mean seats?" in err
