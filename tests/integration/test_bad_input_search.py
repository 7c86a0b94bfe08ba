"""`ctxpipe search` and `serve` where the model, its packages or the index's files are not what they should be."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.clock import SystemClock
from pipeline.embedding.engine import EngineIdentity
from pipeline.embedding.hashing import HashEngine
from pipeline.embedding.space import canary_vectors, define_space, encode_definition, space_id
from pipeline.stores.spaces import SpaceRecord
from schemas.context import ContextSpec
from schemas.topics import text_topic, vector_topic
from tests.integration.test_search_commands import (
    DIMENSION,
    PLANES,
    TEMPLATE,
    World,
    asked,
    context_file,
    serving,
    typed,
    world,
)
from tests.support.cli import ROOT, Done, ctxpipe
from tests.support.eventually import eventually
from tests.support.space_records import SpaceTopics, space_topics

__all__ = ["world"]

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

PACKAGED = "all-MiniLM-L6-v2"
WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without())
"""


def without(folder: Path, *packages: str) -> dict[str, str]:
    """The environment of a machine that does not have them."""
    place = folder / "without"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(WITHOUT.format(packages=set(packages)))
    return {"PYTHONPATH": f"{place}:{ROOT}"}


@asynccontextmanager
async def embedded_by(world: World, engine: str, model: str) -> AsyncIterator[SpaceTopics]:
    """A space that serves and was made by such an engine, which this machine does not have."""
    file = context_file(world.name, TEMPLATE)
    marked = file["embedding"]["filters"]
    file["embedding"] = {"engine": engine, "model": model, "template": TEMPLATE, "filters": marked}
    (world.folder / "context.yaml").write_text(yaml.safe_dump(file))
    identity = EngineIdentity(engine=engine, model=model, dimension=DIMENSION)
    definition = define_space(ContextSpec.model_validate(file), identity)
    space = space_id(definition)
    record = SpaceRecord(
        space=space,
        state="candidate",
        definition=encode_definition(definition),
        canaries=canary_vectors(HashEngine(DIMENSION)),
        dimension=DIMENSION,
        created_us=SystemClock().now_us(),
    )
    await world.stores.spaces.register(record)
    places = (vector_topic(world.name, 1, space), text_topic(world.name, 1, space))
    async with space_topics(world.kafka, *places, space) as topics:
        for plane in PLANES.values():
            await world.put(topics, TEMPLATE, plane)
        assert await world.stores.spaces.promote(space, None, b"")
        yield topics


@pytest.mark.parametrize(
    ("engine", "model", "packages", "said"),
    [
        ("sentence-transformers", "./no-model", (), "no-model"),
        ("onnx", "./no-model", (), "no-model"),
        ("sentence-transformers", PACKAGED, ("torch",), "torch is not installed, which this engine needs: pip install"),
        ("onnx", "./no-model", ("onnxruntime",), "onnxruntime is not installed"),
    ],
    ids=["no model", "no export", "no torch", "no onnxruntime"],
)
async def test_a_model_that_is_not_there_leaves_the_words(
    world: World, engine: str, model: str, packages: tuple[str, ...], said: str
) -> None:
    (world.folder / "no-model").mkdir()
    (world.folder / "no-model" / "readme.txt").write_text("no model")
    environment = without(world.folder, *packages)
    async with embedded_by(world, engine, model):
        done = await typed_with(world, environment, "search", world.name, "wide body jet", "--json")
        (answer,) = done.lines()
        assert done.code == 0 and answer["hits"][0]["key"] == "N1"
        assert answer["mode"] == "lexical" and "the embedding engine cannot be opened" in answer["degraded"]
        assert said in done.err
        alike = await typed_with(world, environment, "search", world.name, "--key", "N1", "--json")
        assert alike.lines()[0]["mode"] == "vector", "vectors that are there need no model"


async def test_without_faiss_the_extra_is_named(world: World) -> None:
    async with world.embedded(TEMPLATE):
        done = await typed_with(world, without(world.folder, "faiss"), "search", world.name, "jet")
        assert done.code == 3 and "pip install 'ctxpipe[search]'" in done.err
        got = await typed_with(world, without(world.folder, "faiss", "tantivy", "torch"), "get", world.name, "N1")
        assert got.code == 0, "bundles need none of it"


async def typed_with(world: World, environment: dict[str, str], *words: str) -> Done:
    return await asyncio.to_thread(lambda: ctxpipe(*words, folder=world.folder, **environment))


@pytest.mark.parametrize("damage", ["a changed byte", "a torn file", "a foreign space", "nothing but noise"])
async def test_an_index_whose_files_were_tampered_with_is_read_anew(world: World, damage: str) -> None:
    index = world.folder / ".ctxpipe" / "vectors" / world.name / "version-1"
    async with world.embedded(TEMPLATE) as topics:
        async with serving(world) as client:
            await until_complete(world, client)
        files = await eventually(lambda: [path for path in (index / topics.space).rglob("*") if path.is_file()])
        _damage(index / topics.space, files, damage)
        async with serving(world) as client:
            await until_complete(world, client)
            found = (await asked(client, world, text="wide body jet of Boeing", k=3)).json()
            assert found["hits"][0]["key"] == "N1" and len(found["hits"]) == 3
            assert found["space"] == topics.space
            assert all(not hit["moved_on"] for hit in found["hits"])
        again = await typed(world, "search", world.name, "propeller plane", "-k", "1")
        assert again.code == 0 and again.out.startswith("N3\t")


async def until_complete(world: World, client: Any) -> None:
    await eventually(
        lambda: asked(client, world, text="wide body jet", k=3, mode="vector"),
        lambda seen: seen.status_code == 200 and seen.json()["degraded"] is None and len(seen.json()["hits"]) == 3,
        timeout_s=60,
    )


def _damage(folder: Path, files: list[Path], damage: str) -> None:
    for path in files:
        content = bytearray(path.read_bytes())
        if damage == "a changed byte" and content:
            content[len(content) // 2] ^= 0xFF
        elif damage == "a torn file":
            del content[len(content) // 2 :]
        elif damage == "a foreign space":
            content = bytearray(re.sub(rb"[0-9a-f]{12}", b"000000000000", bytes(content)))
        else:
            content = bytearray(b"\x00\xff" * 100)
        path.write_bytes(bytes(content))
    assert folder.is_dir()
