"""What every process writes and shows: log lines without secrets, metrics with well-formed names."""

from __future__ import annotations

import io
import json
import logging
import re
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline.core import metrics
from pipeline.core.logging import MESSAGE_LENGTH_MAX, configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_where_nobody_looks() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    logging.getLogger("a.b").warning("lost %s", "redis://:secret@host", extra={"topic": "t", "offset": 5, "x": [1]})
    entry = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert isinstance(entry.pop("process"), int)
    assert entry == {
        "level": "warning",
        "logger": "a.b",
        "message": "lost redis://:**********@host",
        "topic": "t",
        "offset": 5,
        "x": "[1]",
    }


def test_short_lines_at_a_terminal() -> None:
    stream = Terminal()
    configure(stream=stream)
    logging.getLogger("a").info("started", extra={"port": 5})
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} \x1b\[36mINFO   \x1b\[0m a: started  port=5\n", stream.getvalue())


def test_the_style_can_be_chosen_and_setting_up_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(stream=first)
    configure(level="DEBUG", style="console", stream=second)
    logging.getLogger("a").debug("x")
    assert first.getvalue() == ""
    assert second.getvalue().endswith(" DEBUG   a: x\n")


def test_a_traceback_stands_in_the_entry_without_passwords() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    try:
        raise ValueError("postgresql://u:secret@h")
    except ValueError:
        logging.getLogger("a").exception("failed")
    entry = json.loads(stream.getvalue())
    assert "ValueError" in entry["traceback"]
    assert "secret" not in stream.getvalue()


def test_long_messages_are_cut() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    logging.getLogger("a").error("x" * 100_000)
    assert len(json.loads(stream.getvalue())["message"]) < MESSAGE_LENGTH_MAX + 20


def test_talkative_libraries_are_kept_quiet() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    logging.getLogger("aiokafka.consumer").info("heartbeat")
    logging.getLogger("aiokafka.consumer").error("what it raises as well")
    logging.getLogger("faust").info("a rebalance")
    assert stream.getvalue() == ""


def test_every_metric_is_listed_and_well_named() -> None:
    names = [definition.name for definition in metrics.DEFINITIONS]
    assert len(names) == len(set(names))
    parts = (
        "eval|guard|connector|worker|embedding|lookup|search|replica|active|freshness|watermark|canary|group|partition"
    )
    pattern = rf"ctxpipe_({parts}|collector|source|dead_letters)_[a-z_]+"
    for definition in metrics.DEFINITIONS:
        assert re.fullmatch(pattern, definition.name)
        assert definition.name.endswith("_total") is (definition.kind == "counter")
        assert definition.meaning.endswith(".")
        labels = {
            "source",
            "context",
            "operation",
            "status",
            "kind",
            "table",
            "space",
            "mode",
            "part",
            "rung",
            "reason",
            "outcome",
            "stage",
            "group",
            "topic",
            "partition",
            "node",
            "task",
            "endpoint",
            "suite",
        }
        assert set(definition.labels) <= labels
    collected = {metric.name for metric in metrics.REGISTRY.collect()}
    assert {name.removesuffix("_total") for name in names} <= collected


def test_metrics_are_served() -> None:
    metrics.worker_events.labels("a_test").inc(3)
    body, content_type = metrics.expose()
    assert b'ctxpipe_worker_events_total{context="a_test"} 3.0' in body
    assert content_type.startswith("text/plain")
    port = metrics.serve(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b'ctxpipe_worker_events_total{context="a_test"} 3.0' in answer.read()
