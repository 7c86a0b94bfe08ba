"""The section `canary`: its defaults, its mistakes with their lines, the contexts that it adds to the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.processes import choose_port
from pipeline.client.results import ContextInfo
from pipeline.client.tools import tool_schemas
from pipeline.commands._canary_looking import read_canaries
from pipeline.core.canary import CanaryPlan, canary_plans, context_name, is_canary
from pipeline.core.config import Config, load, load_context_files, load_contexts
from pipeline.core.errors import ConfigError

SERVERS = """\
kafka: {bootstrap_servers: "127.0.0.1:9092"}
redis: {url: "redis://127.0.0.1:6379/0"}
sources:
  shop: {connector: postgres, dsn: "postgresql://host/db", tables: [public.items, public.ctxpipe_canary]}
  readings: {connector: scylla, hosts: [h], keyspace: ks, tables: [readings, ctxpipe_canary], heartbeat_interval_s: 10}
  old: {connector: debezium, topic_prefix: o}
"""


def loaded(folder: Path, canary: str, more: str = "") -> Config:
    path = folder / "ctxpipe.yaml"
    path.write_text(f"{SERVERS}{more}canary:\n{canary}")
    return load(path)


def plans(config: Config) -> dict[str, CanaryPlan]:
    assert config.canary is not None
    return {plan.source: plan for plan in canary_plans(config.canary, config.sources)}


def test_the_contexts_are_like_any_other(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """\
  url: http://127.0.0.1:8080/
  api_key: sesame
  sources:
    shop: {table: public.ctxpipe_canary, embedding: {engine: hash}}
    readings: {table: ctxpipe_canary, every_s: 2, late_after_s: 45}
    old: {table: inventory.canary, login: {password: hunter2}}
""",
    )
    assert config.canary is not None and config.canary.url == ["http://127.0.0.1:8080"]
    found = plans(config)
    assert found["shop"].limit_s == 15 and found["shop"].searches and found["shop"].judges_contexts
    assert (found["readings"].table, found["readings"].limit_s) == ("ks.ctxpipe_canary", 47)
    assert (found["shop"].contexts_limit_s, found["readings"].contexts_limit_s) == (16, 57)
    assert not found["old"].judges_contexts, "a Debezium's topics have no heartbeats of ours"
    specs = load_contexts(config)
    assert list(specs) == ["canary_old", "canary_readings", "canary_shop"]
    shop = specs[context_name("shop")]
    assert shop.entities["canary"].table == "public.ctxpipe_canary" and shop.entities["canary"].key == ["slot"]
    assert [field.name for field in shop.fields] == ["slot", "slots", "kafka_partition", "number", "written_us"]
    assert shop.embedded_template is not None and "{{ number }}" in shop.embedded_template
    assert specs["canary_old"].embedding is None
    assert is_canary("canary_shop", shop.description) and not is_canary("canary_birds", "Canaries, and other birds.")
    infos = [ContextInfo(name, 1, specs[name].description, ("slot",), 1, 1, "") for name in specs]
    offered = tool_schemas([*infos, ContextInfo("canary_birds", 1, "Canaries, and other birds.", ("id",), 1, 1)])
    assert [one["function"]["name"] for one in offered] == ["get_context_bundle_canary_birds"]
    assert load_context_files(config)["canary_shop"].document.path == config.path
    shown = str(config.shown())
    assert "sesame" not in shown and "hunter2" not in shown


def test_every_mistake_is_told_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(
            tmp_path,
            """\
  url: http://127.0.0.1:8080
  sources:
    shops: {table: public.ctxpipe_canary}
    shop: {table: public.canary}
    readings: {table: ctxpipe_canary}
    old: {table: canary}
""",
        )
    told = "\n".join(caught.value.mistakes)
    assert "ctxpipe.yaml:10: canary.sources.shops: there is no source 'shops'; did you mean shop?" in told
    assert ":11: canary.sources.shop.table: source shop does not capture public.canary; add it under" in told
    assert ":12: canary.sources.readings.late_after_s: no change of this source comes before 30 s" in told
    assert ":13: canary.sources.old.table: 'canary' needs its schema; write public.canary" in told
    for wrong, words in (
        ("  url: serve:8080\n  sources: {shop: {table: public.ctxpipe_canary}}\n", "no address of a lookup service"),
        ("  url: http://h\n  sources: {}\n", "must not be empty"),
        ("  url: http://h\n  sources: {shop: {tabel: t}}\n", "did you mean table?"),
        (
            "  url: http://h\n  sources: {shop: {table: p.t, embedding: {engine: hash, model: m}}}\n",
            "hash has no model",
        ),
    ):
        with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
            loaded(tmp_path, wrong)


def test_a_context_of_the_same_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "context: canary_shop\nversion: 1\nroot: item\nfields: [id]\n"
        "entities:\n  item: {source: shop, table: public.items, key: [id]}\n"
    )
    config = loaded(
        tmp_path,
        "  url: http://h\n  sources: {shop: {table: public.ctxpipe_canary}}\n",
        "contexts: [mine.yaml]\n",
    )
    with pytest.raises(ConfigError, match=r"mine.yaml:1: context 'canary_shop' is the canary's of .*ctxpipe.yaml"):
        load_contexts(config)


async def test_who_only_reads_is_told_when_nobody_answers_and_when_there_are_none(tmp_path: Path) -> None:
    port = choose_port()
    config = loaded(
        tmp_path, f"  url: http://127.0.0.1:{port}\n  sources: {{shop: {{table: public.ctxpipe_canary}}}}\n"
    )
    (seen,) = await read_canaries(config)
    assert not seen.up and (seen.source, seen.age_s, seen.limit_s) == ("shop", None, 15)
    assert f"http://127.0.0.1:{port} does not answer" in seen.reason
    without = config.model_copy(update={"canary": None})
    assert await read_canaries(without) == []
