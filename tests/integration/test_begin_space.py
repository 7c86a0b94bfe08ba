"""Beginning a space in a process of its own: its name is all that it says, or one message why it can't."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from schemas.context import ContextSpec
from tests.integration.test_bad_input_search import PACKAGED, without

pytestmark = pytest.mark.servers


def context_file(**embedding: Any) -> dict[str, Any]:
    return {
        "context": "thing",
        "version": 1,
        "root": "thing",
        "entities": {"thing": {"source": "shop", "table": "public.things", "key": ["id"]}},
        "fields": ["id"],
        "embedding": {"template": "{{ id }}", **embedding},
    }


class World:
    """A configuration, and stores of its version."""

    def __init__(self, folder: Path, redis_url: str, stores: Stores) -> None:
        self.folder, self.stores = folder, stores
        config = {
            "kafka": {"bootstrap_servers": "127.0.0.1:1"}, "redis": {"url": redis_url}, "contexts": ["thing.yaml"]
        }  # fmt: skip
        (folder / "ctxpipe.yaml").write_text(yaml.safe_dump(config))

    async def remember(self, **embedding: Any) -> None:
        """As a worker of the version does."""
        file = context_file(**embedding)
        (self.folder / "thing.yaml").write_text(yaml.safe_dump(file))
        await self.stores.serving.remember(ContextSpec.model_validate(file), {})

    def begin(self, **environment: str) -> tuple[int, str, str]:
        words = [sys.executable, "-m", "pipeline.streams.process", "--config", str(self.folder / "ctxpipe.yaml")]
        done = subprocess.run(
            [*words, "thing", "--begin-space", "--version", "1"],
            env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
async def world(tmp_path: Path, redis_url: str) -> Any:
    stores = await open_stores(RedisSettings(url=redis_url, context="thing", version=1))
    yield World(tmp_path, redis_url, stores)
    await stores.close()


async def test_it_says_the_name_of_the_space_every_time(world: World) -> None:
    (world.folder / "thing.yaml").write_text(yaml.safe_dump(context_file(engine="hash")))
    assert world.begin()[:2] == (0, ""), "no worker of the version has begun"
    await world.remember(engine="hash")
    code, out, _ = world.begin()
    (record,) = await world.stores.spaces.all()
    assert (code, out, record.state) == (0, f"{record.space}\n", "candidate")
    assert world.begin()[:2] == (0, out) and await world.stores.spaces.all() == [record]


@pytest.mark.parametrize(
    ("embedding", "packages", "code", "said"),
    [
        ({"engine": "sentence-transformers", "model": PACKAGED}, ("torch",), 3, "torch is not installed"),
        ({"engine": "sentence-transformers", "model": "./no-model"}, (), 2, "no-model"),
        ({"engine": "onnx", "model": "./no-model"}, (), 2, "no-model"),
        ({"engine": "openai", "model": "m", "endpoint": "nowhere"}, (), 2, "no endpoint 'nowhere'"),
        ({"engine": "hash"}, ("numpy",), 3, "numpy is not installed"),
    ],
    ids=["no torch", "no model", "no export", "no endpoint", "no numpy"],
)
async def test_what_is_missing_is_one_message_and_no_space(
    world: World, embedding: dict[str, Any], packages: tuple[str, ...], code: int, said: str
) -> None:
    (world.folder / "no-model").mkdir()
    await world.remember(**embedding)
    ended, out, told = world.begin(**without(world.folder, *packages))
    assert (ended, out) == (code, "") and said in told
    if code == 3:
        assert "pip install 'ctxpipe[" in told
    assert await world.stores.spaces.all() == []
