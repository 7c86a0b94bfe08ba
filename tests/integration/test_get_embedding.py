"""`ctxpipe get` tells how each bundle's vector stands, in the space of the version that answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import cli
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import open_stores
from pipeline.stores.spaces import REFUSED, SpaceRecord, VectorState
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey
from schemas.context import ContextSpec

pytestmark = pytest.mark.servers

STATES = {
    "1": VectorState(1, "h", "t", "t"),
    "2": VectorState(1, "h", "t", "", "endpoint here answered 429: too many"),
    "3": VectorState(1, "h", "", "", f"{REFUSED}the text template fails on this bundle: division by zero"),
    "4": VectorState(1, "h", "t"),
    "5": VectorState(1, "h", ""),
}


def context_file(version: int) -> dict[str, Any]:
    return {
        "context": "thing",
        "version": version,
        "root": "thing",
        "entities": {"thing": {"source": "shop", "table": "public.things", "key": ["id"]}},
        "fields": ["id"],
        "embedding": {"engine": "hash", "template": "{{ id }}"},
    }


async def fill(url: str, version: int, space: str, states: dict[str, VectorState]) -> None:
    """The version's bundles, and what is known of their vectors in its space, which serves."""
    stores = await open_stores(RedisSettings(url=url, context="thing", version=version))
    await stores.serving.remember(ContextSpec.model_validate(context_file(version)), {})
    record = SpaceRecord(space=space, state="candidate", definition=b"", canaries=b"", dimension=1, created_us=1)
    await stores.spaces.register(record)
    assert await stores.spaces.promote(space, None, b"")
    for key, state in states.items():
        body = json.dumps({"id": int(key)}).encode()
        await stores.bundles.put([(UnitKey(ROOT_UNIT, key), Stored(1, Meta("h", version), body))])
        await stores.vector_states.write_texts(space, {key: state})
        await stores.vector_states.write_vectors(space, {key: (state.vector_hash, state.problem)})
    await stores.serving.promote(version)
    await stores.close()


def got(capsys: Any, folder: Path, *words: str) -> str:
    assert cli.run(["get", "thing", *words, "--config", str(folder / "ctxpipe.yaml")]) == 0
    out: str = capsys.readouterr().out
    return out


def test_each_vector_is_labelled_in_the_space_of_the_version_that_answers(
    tmp_path: Path, redis_url: str, capsys: Any
) -> None:
    config = {"kafka": {"bootstrap_servers": "127.0.0.1:1"}, "redis": {"url": redis_url}, "contexts": ["thing.yaml"]}
    (tmp_path / "ctxpipe.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "thing.yaml").write_text(yaml.safe_dump(context_file(1)))
    asyncio.run(fill(redis_url, 1, "first", STATES))
    lines = got(capsys, tmp_path, *STATES, "--json").splitlines()
    labels = [json.loads(line)["embedding"] for line in lines]
    assert [label["state"] for label in labels] == ["current", "failing", "failing", "pending", "none"]
    assert {label["space"] for label in labels} == {"first"}
    assert labels[1]["problem"] == "endpoint here answered 429: too many"
    assert labels[2]["problem"].startswith(REFUSED)
    shown = got(capsys, tmp_path, *STATES)
    assert "vector current in space first\n" in shown
    assert "vector failing in space first: endpoint here answered 429: too many\n" in shown

    asyncio.run(fill(redis_url, 2, "second", {"1": VectorState(1, "h", "t2")}))
    (tmp_path / "thing.yaml").write_text(yaml.safe_dump(context_file(2)))
    assert json.loads(got(capsys, tmp_path, "1", "--json"))["embedding"] == {"space": "second", "state": "pending"}
    before = json.loads(got(capsys, tmp_path, "1", "--version", "1", "--json"))
    assert before["embedding"] == {"space": "first", "state": "current"} and before["spec_version"] == 1
