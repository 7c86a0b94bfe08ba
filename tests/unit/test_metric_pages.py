"""Pages of several processes as one: nothing is lost or doubled, and who is gone is simply not there."""

from __future__ import annotations

import socket

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.commands._embedding_keeper import place_of
from pipeline.commands._worker_pages import metrics_ports, pages_of
from pipeline.core.health import Health, serve
from pipeline.core.metric_pages import merged, read_pages
from pipeline.streams.supervisor import Place, places


def page(events: int, age_s: float) -> str:
    registry = CollectorRegistry()
    Counter("events", "Changes that were applied.", ["context"], registry=registry).labels("shop").inc(events)
    Gauge("age_seconds", "Age of the newest.", registry=registry).set(age_s)
    Histogram("batch_seconds", "Time of a batch.", registry=registry, buckets=(0.1, 1)).observe(0.5)
    return generate_latest(registry).decode()


def test_series_of_all_processes_stand_side_by_side() -> None:
    text = merged({"shop/1": page(3, 0.5), "shop/2": page(4, float("inf"))}).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {family.type for family in families.values()} >= {"counter", "gauge", "histogram"}
    assert families["events"].documentation == "Changes that were applied."
    values = {
        (sample.name, sample.labels["process"]): sample.value
        for family in families.values()
        for sample in family.samples
        if "le" not in sample.labels
    }
    assert values["events_total", "shop/1"] == 3
    assert values["events_total", "shop/2"] == 4
    assert values["age_seconds", "shop/2"] == float("inf")
    assert values["batch_seconds_count", "shop/1"] == 1
    assert text.count("# TYPE events_total counter") == 1
    lines = [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)), "no series twice"


def test_a_page_that_cannot_be_read_takes_nothing_with_it(caplog: pytest.LogCaptureFixture) -> None:
    text = merged({"torn": "events_total{context=", "whole": page(1, 1.0)}).decode()
    assert 'process="whole"' in text
    assert 'process="torn"' not in text
    assert "the metrics of torn can't be read" in caplog.text
    assert merged({}) == b""


def test_pages_are_read_from_those_that_answer() -> None:
    port = serve(0, Health("test"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"there": port, "gone": 1, "silent": silent.getsockname()[1]}
        pages = read_pages(ports, timeout_s=0.5)
    assert set(pages) == {"there"}
    assert "process_start_time_seconds" in pages["there"]
    assert read_pages({}) == {}


def test_a_worker_knows_the_ports_of_its_processes() -> None:
    made = places("ctxpipe.yaml", ["shop"], 2, {}, metrics_port=9101)
    made.append(place_of("ctxpipe.yaml", "shop", 9103))
    assert metrics_ports(made) == {
        "shop/1": 9101, "shop/2": 9102,
        "shop/spaces/1": 9103, "shop/spaces/2": 9104, "shop/spaces/3": 9105, "shop/spaces/4": 9106,
    }  # fmt: skip
    assert metrics_ports(places("ctxpipe.yaml", ["shop"], 2, {})) == {}
    assert metrics_ports(places("ctxpipe.yaml", ["shop"], 2, {}, metrics_port=0)) == {}


def test_the_page_of_a_worker_has_its_own_series_and_those_of_the_processes_that_answer() -> None:
    port = serve(0, Health("test"))
    here = Place("shop/1", ["python", "--metrics-port", str(port)])
    gone = Place("shop/2", ["python", "--metrics-port", "1"])
    body, _ = pages_of(lambda: [here, gone])["/metrics"]()
    told = {
        sample.labels.get("process")
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert told == {"supervisor", "shop/1"}
