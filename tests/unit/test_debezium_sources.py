"""Existing Debezium deployments in a configuration: three lines, every mistake at its place, topics by their prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.registry import configure, find
from pipeline.core.config import Config, load
from pipeline.core.errors import ConfigError
from pipeline.plan import compile_plan
from pipeline.rows import Change, decode_batch
from pipeline.streams.compose import context_stream
from schemas.context import ContextSpec
from tests.support.cli import ctxpipe
from tests.support.debezium_fixtures import plain

OWN: dict[str, Any] = {"connector": "postgres", "dsn": "postgresql://127.0.0.1:1/d", "tables": ["p.t"]}


def write(folder: Path, **sources: Any) -> Path:
    body = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "sources": sources,
    }
    path = folder / "ctxpipe.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


def loaded(folder: Path, **section: Any) -> Config:
    return load(write(folder, shop={"connector": "debezium", **section}))


def spec_of(*sources: str) -> ContextSpec:
    entities = {source: {"source": source, "table": "p.t", "key": ["id"]} for source in sources}
    section = {"entity": sources[-1], "kind": "one", "on": {"id": "id"}, "fields": ["v"]}
    spec = {"context": "c", "version": 1, "root": sources[0], "entities": entities, "fields": ["id", "v"]}
    return ContextSpec.model_validate({**spec, **({"sections": {"other": section}} if len(sources) > 1 else {})})


def test_topics_follow_the_prefix_and_the_source_keeps_its_name(tmp_path: Path) -> None:
    config = loaded(tmp_path, topic_prefix="x")
    plan = compile_plan(spec_of("shop"), formats=config.formats)
    assert list(plan.topics) == ["x.p.t"] and context_stream(config, spec_of("shop")).topics == ["x.p.t"]
    decoded = decode_batch(plan, [plain({"id": 1, "v": "a"})])
    (change,) = decoded.changes
    assert isinstance(change, Change) and change.values == [1, "a"] and change.table.name == "shop.p.t"
    assert decoded.applied["x.p.t", 0].source == "shop"


def test_the_prefix_is_the_sources_name_unless_told(tmp_path: Path) -> None:
    assert loaded(tmp_path).topic("shop", "public.t") == "shop.public.t"
    assert compile_plan(spec_of("dbserver1")).topics.keys() == {"dbserver1.p.t"}, "and without any source, too"


def test_no_two_sources_read_the_same_topics(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ctxpipe.yaml:\d+: sources.two.*has the same topics as source one"):
        load(write(tmp_path, one={"connector": "debezium"}, two={"connector": "debezium", "topic_prefix": "one"}))
    config = load(write(tmp_path, one={"connector": "debezium", "topic_prefix": "own"}, own=OWN))
    with pytest.raises(ConfigError, match=r"both come on topic own\.p\.t; mend topic_prefix"):
        compile_plan(spec_of("one", "own"), formats=config.formats)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"topic_prefx": "a"}, "unknown key; did you mean topic_prefix?"),
        ({"topic_prefix": "a b"}, "sources.shop.topic_prefix"),
        ({"tables": ["orders"]}, "'orders' is not schema.table"),
        ({"tables": []}, "sources.shop.tables"),
        ({"format": "flat"}, "sources.shop.format"),
        ({"full_images": True}, "full_images goes with format: advanced"),
        ({"schema_registry": "registry:8081"}, "write http://host:port"),
    ],
)
def test_mistakes_are_told_at_their_place(tmp_path: Path, section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as told:
        loaded(tmp_path, **section)
    assert words in str(told.value) and "ctxpipe.yaml:" in str(told.value)


def test_secrets_of_the_section_are_shown_nowhere(tmp_path: Path) -> None:
    config = loaded(tmp_path, schema_registry="http://u:opensesame@r:8081", dsn="postgresql://u:opensesame@h/d")
    (configured,) = configure(config.sources)
    assert "opensesame" not in f"{config!r} {configured!r} {config.shown()}"


def test_the_connector_is_found_and_has_nothing_to_run(tmp_path: Path) -> None:
    assert find("debezium").source is None and find("debezium").abilities() == []
    write(tmp_path, shop={"connector": "debezium"}, own=OWN)
    done = ctxpipe("connect", "shop", folder=tmp_path)
    assert done.code == 2
    assert done.told() == ["ctxpipe: source shop: nothing has to run, others (Debezium) fill its topics"]
    done = ctxpipe("connect", "--all", folder=tmp_path)
    assert done.code == 3 and "nothing has to run for shop" in done.err, "the others run"
    write(tmp_path, shop={"connector": "debezium"})
    assert ctxpipe("connect", "--all", folder=tmp_path).code == 2
