"""`ctxpipe plan`: the model does what its parts say, the figures are the benchmarks', and the page says the same."""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.scaling import FIGURES, PAGE, brought_up_to_date
from pipeline.commands.plan import load_of
from pipeline.core.errors import ConfigError
from pipeline.core.metrics import DEFINITIONS
from pipeline.ops.measured import FILE, Measured, collect, load_measured
from pipeline.ops.sizing import PARTITIONS, Load, Plan, plan
from pipeline.ops.sizing_search import search_cost
from pipeline.ops.sizing_text import markdown, verdict
from tests.support.cli import ROOT, ctxpipe

MEASURED = load_measured()


def load(**changed: Any) -> Load:
    return load_of({"events_per_s": 1_000.0, "bundles": 100_000, **changed}, MEASURED)


def planned(**changed: Any) -> Plan:
    return plan(load(**changed), MEASURED)


def test_the_figures_are_those_of_the_committed_benchmarks() -> None:
    assert collect(FIGURES) == MEASURED, "python -m deploy.scaling writes them anew"
    assert all(date >= "2026-11" for date in MEASURED.sources.values())


def test_the_page_says_what_the_command_says() -> None:
    page = PAGE.read_text()
    assert page.count("<!-- ctxpipe plan ") == page.count("<!-- end -->") >= 3
    assert brought_up_to_date(page) == page, "python -m deploy.scaling writes the tables anew"


def test_the_page_watches_metrics_that_exist() -> None:
    known = {definition.name for definition in DEFINITIONS}
    named = set(re.findall(r"\bctxpipe_[a-z_]+", PAGE.read_text()))
    assert len(named) > 5
    assert named <= known


def test_ten_times_the_load_takes_ten_times_as_much_where_it_is_not_rounded() -> None:
    one = planned(events_per_s=100_000.0, bundles=10_000_000, lookups_per_s=1e6)
    ten = planned(events_per_s=1_000_000.0, bundles=100_000_000, lookups_per_s=1e7)
    for name in ("workers", "replicas", "redis"):
        assert ten.part(name).count == pytest.approx(10 * one.part(name).count, rel=0.1), name
    assert ten.redis_bytes == pytest.approx(10 * one.redis_bytes, rel=1e-6)


def test_workers_are_what_the_bench_says_at_half_of_what_one_carries() -> None:
    rate = MEASURED.apply_events_per_s
    assert planned(events_per_s=rate * 5).part("workers").count == 10
    assert planned(events_per_s=rate * 5, utilisation=0.8).part("workers").count == 7
    assert planned(events_per_s=rate * 5, contexts=3).part("workers").count == 30
    assert planned(events_per_s=1.0).part("workers").count == 2, "one may fail"
    assert planned(events_per_s=rate * 5, fan_out=2 * MEASURED.apply_writes_per_event).part("workers").count > 13


def test_lookups_cost_what_was_measured_with_and_without_the_near_cache() -> None:
    rate = MEASURED.lookups_per_s * 10
    assert planned(lookups_per_s=rate).part("replicas").count == 20
    without = planned(lookups_per_s=rate, near_share=0.0).part("replicas")
    assert without.share * without.count == pytest.approx(rate / MEASURED.lookups_without_near_per_s)


def test_embedders_are_there_only_for_what_is_embedded() -> None:
    assert planned().part("embedders").count == 0
    assert math.isinf(planned().part("embedders").full_at)
    some = planned(embedded_share=1.0, changed_texts_share=1.0, fan_out=1.0)
    assert some.part("embedders").count == math.ceil(1_000 / MEASURED.embed_texts_per_s["onnx-int8"] / 0.5)
    assert some.times.embedding_s > 0
    slower = planned(embedded_share=1.0, changed_texts_share=1.0, fan_out=1.0, engine="sentence-transformers")
    assert slower.part("embedders").count > some.part("embedders").count


def test_partitions_leave_room_and_may_be_given() -> None:
    assert planned().partitions == 8
    big = planned(events_per_s=50_000.0)
    assert big.partitions >= 4 * big.part("workers").count
    assert big.partitions in PARTITIONS
    given_ = planned(events_per_s=200_000.0, partitions=4)
    assert not given_.fits
    assert given_.first_ceiling.name == "partitions"
    assert verdict(given_).startswith("This load is too much, whatever is added: partitions carries 18% of it")


def test_a_single_redis_ends_where_its_core_or_its_memory_is_full() -> None:
    by_core = planned(events_per_s=10_000.0, bundles=1_000, utilisation=0.95)
    assert by_core.redis_shards == 1
    ceiling = next(one for one in by_core.ceilings if one.name == "a single Redis")
    assert ceiling.at == pytest.approx(1 / (10_000 * MEASURED.redis_event_s), rel=0.01)
    by_memory = planned(events_per_s=1.0, bundles=50_000_000)
    assert by_memory.redis_shards > 10
    assert "a single Redis" not in {one.name for one in by_memory.ceilings}
    assert all(one.each_bytes <= 16 * 1024**3 for one in by_memory.parts)


def test_the_index_and_its_searches_are_limits_that_replicas_do_not_mend() -> None:
    names = {one.name: one.at for one in planned(bundles=30_000_000, embedded_share=1.0, searches_per_s=10.0).ceilings}
    assert names["index of a replica"] < 1
    assert names["time of a search"] < 1
    half = planned(bundles=30_000_000, embedded_share=0.05, searches_per_s=10.0)
    assert half.fits


def test_search_cost_meets_the_measured_points_and_grows_between_and_behind() -> None:
    for point in MEASURED.search_curve:
        assert search_cost(MEASURED, point.vectors, 384).searches_per_s == pytest.approx(point.searches_per_s)
    beyond = search_cost(MEASURED, 4_000_000, 384)
    assert beyond.searches_per_s == pytest.approx(MEASURED.search_curve[-1].searches_per_s / 2)
    assert search_cost(MEASURED, 200_000, 384).p99_ms < search_cost(MEASURED, 300_000, 384).p99_ms
    assert search_cost(MEASURED, 1_000_000, 768).searches_per_s == pytest.approx(336 / 2)
    assert beyond.vectors_within(beyond.p99_ms) == pytest.approx(4_000_000)
    assert beyond.vectors_within(0.1) == 0


@given(
    events=st.floats(0.001, 1e8),
    bundles=st.integers(1, 10**11),
    lookups=st.floats(0, 1e8),
    searches=st.floats(0, 1e7),
    embedded=st.floats(0, 1),
    fan_out=st.floats(0, 1e6),
    near=st.floats(0, 1),
    source=st.sampled_from(sorted(MEASURED.capture_rows_per_s)),
)
def test_any_load_that_is_let_in_has_a_plan(
    events: float,
    bundles: int,
    lookups: float,
    searches: float,
    embedded: float,
    fan_out: float,
    near: float,
    source: str,
) -> None:
    made = planned(
        events_per_s=events, bundles=bundles, lookups_per_s=lookups, searches_per_s=searches, embedded_share=embedded,
        fan_out=fan_out, near_share=near, source=source,
    )  # fmt: skip
    assert all(part.count >= 0 and part.share >= 0 for part in made.parts)
    assert all(part.share <= 0.81 for part in made.parts if part.name not in ("connectors",))
    assert all(ceiling.at >= 0 for ceiling in made.ceilings)
    text = markdown(made, MEASURED)
    assert re.search(r"\b(nan|inf)\b", text) is None


def test_the_command_shows_tables_and_a_verdict(tmp_path: Path) -> None:
    done = ctxpipe("plan", "--events-per-s", "500", "--bundles", "300k", "--lookups-per-s", "1k", folder=tmp_path)
    assert done.code == 0, done.err
    for text in ("worker processes", "serving replicas", "partitions of each topic", "Of this plan the", "Measured on"):
        assert text in done.out


def test_json_holds_the_plan_and_the_figures_behind_it(tmp_path: Path) -> None:
    done = ctxpipe("plan", "--events-per-s", "500", "--bundles", "300000", "--json", folder=tmp_path)
    shown = json.loads(done.out)
    assert shown["fits"] is True
    assert shown["partitions"] == 8
    assert {part["name"] for part in shown["parts"]} >= {"connectors", "workers", "redis", "replicas", "brokers"}
    assert next(part for part in shown["parts"] if part["name"] == "embedders")["full_at"] is None
    assert msgspec.convert(shown["figures"], Measured) == MEASURED


def test_figures_of_ones_own_machines_are_taken(tmp_path: Path) -> None:
    faster = tmp_path / "ours.json"
    content = json.loads(FILE.read_text())
    faster.write_text(json.dumps({**content, "apply_events_per_s": 100_000, "environment": "32 cores"}))
    done = ctxpipe(
        "plan", "--events-per-s", "50000", "--bundles", "1000", "--figures", str(faster), "--json", folder=tmp_path
    )
    shown = json.loads(done.out)
    assert shown["figures"]["environment"] == "32 cores"
    assert next(part for part in shown["parts"] if part["name"] == "workers")["count"] == 2


def test_a_load_that_nothing_carries_is_answered_with_no(tmp_path: Path) -> None:
    done = ctxpipe("plan", "--events-per-s", "500k", "--bundles", "1M", "--partitions", "8", folder=tmp_path)
    assert done.code == 1
    assert "This load is too much" in " ".join(done.out.split())


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    done = ctxpipe(
        "plan", "--bundles", "2.5", "--bundle-bytes", "3", "--near-share", "x", "--source", "mysql", "--engine", "gpt",
        "--rows", "nan", "--fan-out=-1", folder=tmp_path,
    )  # fmt: skip
    assert done.code == 2
    for text in (
        "--events-per-s is missing, e.g. --events-per-s 1000",
        "--bundles: 2.5 has to be whole",
        "--bundle-bytes: 3 has to be from 10 to 16,000,000",
        "--near-share: 'x' is no number",
        "--source: 'mysql' was not measured; take postgres, scylla, cassandra",
        "--engine: 'gpt' was not measured; take onnx-int8",
        "--rows: nan has to be from 1",
        "--fan-out: -1 has to be from 0",
    ):
        assert text in done.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "can't be read"),
        ("{}", "is not like measured.json"),
        ("[", "is not like measured.json"),
        ("zero", "apply_events_per_s has to be above 0"),
        ("empty", "search_curve has to be above 0"),
    ],
)
def test_figures_that_are_none_are_refused(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "figures.json"
    ours = json.loads(FILE.read_text())
    if content == "zero":
        content = json.dumps({**ours, "apply_events_per_s": 0})
    if content == "empty":
        content = json.dumps({**ours, "search_curve": []})
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=told):
        load_measured(path)


def test_an_installed_ctxpipe_has_the_figures_too() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "*.json" in packaged["pipeline.ops"]
    assert FILE.parent.name == "ops"
