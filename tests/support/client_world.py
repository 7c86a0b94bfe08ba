"""Contexts filled by hand on a real Redis and a `ctxpipe serve` over them, for the tests of clients."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from pipeline.core.clock import SystemClock
from pipeline.core.config import load
from pipeline.stores.redis_store import Stores, context_settings, open_stores
from pipeline.stores.store import AppliedPosition
from schemas.bundle import ROOT_UNIT, FragmentReference, Meta, SourceState, Stored, UnitKey
from schemas.context import ContextSpec
from schemas.event import version_of
from tests.support.cli import ROOT
from tests.support.eventually import eventually
from tests.support.running_pipeline import free_port

CLUSTER = "7301"
REACHED_LSN, LATER_LSN = 500, 90_000
FLIGHT: dict[str, Any] = {
    "context": "flight",
    "version": 3,
    "description": "A departure with its plane.",
    "root": "flight",
    "entities": {
        "flight": {"source": "nyc", "table": "public.flights", "key": ["id"]},
        "plane": {"source": "fleet", "table": "public.planes", "key": ["tail"]},
    },
    "fields": ["id", "gate"],
    "sections": {
        "plane": {"entity": "plane", "on": {"tail": "tail"}, "compose": "link", "fields": ["tail", "year"]},
    },
    "text": {"template": "{{ id }}", "priorities": ["plane"]},
    "history": {"retention_s": 3600},
    "serving": {"budget_ms": 3_000, "max_age_ms": 60_000},
}
SEAT: dict[str, Any] = {
    "context": "seat",
    "version": 1,
    "description": "A seat of a flight.",
    "root": "seat",
    "entities": {"seat": {"source": "old", "table": "public.seats", "key": ["flight", "seat"]}},
    "fields": ["flight", "seat", "airline"],
    "tenant": "airline",
    "serving": {"budget_ms": 3_000, "max_age_ms": 60_000, "default": {"seat": None, "note": "unknown"}},
}
WEIRD_KEYS = (
    ".",
    "..",
    "a/../b",
    "x:batchGet",
    "?q=1#f",
    " ",
    "+",
    "%2F",
    "%25",
    "a%7Cb",
    "ключ/ß",
    "🛫",
    "a\nb",
    '"\\',
)
PLANE = b'{"tail":"N1","year":1990}'


@dataclass
class ClientWorld:
    """`url` is of the server, over TLS where there is an `authority`; the configuration lies at `config_path`."""

    folder: Path
    redis_url: str
    port: int
    authority: str | None = None

    @property
    def config_path(self) -> str:
        return str(self.folder / "ctxpipe.yaml")

    @property
    def url(self) -> str:
        return f"{'http' if self.authority is None else 'https'}://127.0.0.1:{self.port}"

    def write(self, **more: Any) -> None:
        config = {
            "kafka": {"bootstrap_servers": "127.0.0.1:1"},
            "redis": {"url": self.redis_url},
            "sources": {},
            "contexts": ["flight.yaml", "seat.yaml"],
            "serve": {"port": self.port},
            **more,
        }
        (self.folder / "ctxpipe.yaml").write_text(yaml.safe_dump(config))
        for spec in (FLIGHT, SEAT):
            (self.folder / f"{spec['context']}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))

    async def stores(self, spec: dict[str, Any]) -> Stores:
        """To be closed."""
        return await open_stores(context_settings(load(self.config_path), ContextSpec.model_validate(spec)))

    async def fill(self) -> None:
        """Flights 1 (with a plane), 2 (with none), 3 (JSON that few read), one per weird key; seats of two airlines."""
        stores = await self.stores(FLIGHT)
        try:
            await stores.serving.remember(ContextSpec.model_validate(FLIGHT), {"plane": "link"})
            await stores.serving.promote(3)
            await put_flight(stores, "1", "A1", 1_000)
            await put_flight(stores, "1", "B4", 1_500)
            await put_flight(stores, "2", "C7", 1_000, plane=None)
            odd = b'{"id":3,"gate":{"a":"\\ud800","b":1e999,"c":123456789012345678901234567890},"plane":null}'
            await stores.bundles.put([(UnitKey(ROOT_UNIT, "3"), Stored(1_000, Meta("h3", 3), odd))])
            for key in WEIRD_KEYS:
                await put_flight(stores, key, "W", 1_000, plane=None)
            times_us = SystemClock().now_us() + 10**12
            nyc = AppliedPosition("nyc", 1, version_of(REACHED_LSN, 0), times_us, CLUSTER)
            fleet = AppliedPosition("fleet", 1, version_of(times_us, 0), times_us)
            await stores.marks.write_applied({("nyc.public.flights", 0): nyc, ("fleet.public.planes", 0): fleet})
        finally:
            await stores.close()
        await self._fill_seats()

    async def _fill_seats(self) -> None:
        stores = await self.stores(SEAT)
        try:
            await stores.serving.remember(ContextSpec.model_validate(SEAT), {})
            await stores.serving.promote(1)
            for airline, key in (("acme", "1|A"), ("other", "1|B"), ("acme", "1%7C2|C%25")):
                body = b'{"flight":1,"seat":"A","airline":"%b"}' % airline.encode()
                meta = Meta(f"s{key}", 1, {"old": SourceState(version_of(9, 0), 9)}, tenant=airline)
                await stores.bundles.put([(UnitKey(ROOT_UNIT, key), Stored(1_000, meta, body))])
            # Nothing has been heard of this source for years: what is found is stale.
            old = AppliedPosition("old", 1, version_of(9, 0), 1_000_000)
            await stores.marks.write_applied({("old.public.seats", 0): old})
        finally:
            await stores.close()


async def put_flight(stores: Stores, key: str, gate: str, counter: int, plane: str | None = "N1") -> None:
    head = b'{"id":1,"gate":"%b","plane":' % gate.encode()
    meta = Meta(
        f"{key}{gate}", 3, {"nyc": SourceState(version_of(400, 1), 1_700_000_000_000_000)},
        [FragmentReference(len(head), "plane", plane)],
    )  # fmt: skip
    items = [(UnitKey(ROOT_UNIT, key), Stored(counter, meta, head + b"}"))]
    if plane is not None:
        items.append((UnitKey("plane", plane), Stored(counter, Meta("p", 3), PLANE)))
    await stores.bundles.put(items)


def client_world(folder: Path, redis_url: str) -> ClientWorld:
    """Its files written, nothing filled yet."""
    world = ClientWorld(folder, redis_url, free_port())
    world.write()
    return world


@asynccontextmanager
async def served(world: ClientWorld, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`ctxpipe serve` until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pipeline.cli", "serve", cwd=world.folder, env={"PYTHONPATH": str(ROOT), **environment}
    )
    try:
        trusted = True if world.authority is None else ssl.create_default_context(cafile=world.authority)
        async with httpx.AsyncClient(base_url=world.url, timeout=20, verify=trusted) as asking:
            await eventually(
                lambda: asking.get("/readyz"), lambda seen: seen.status_code == 200, ignore=(httpx.HTTPError,)
            )
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 20)
