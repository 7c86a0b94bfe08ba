"""A context whose bundles, texts and vectors are in memory, with the search service over them; for fault scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from pipeline.core.clock import SystemClock
from pipeline.embedding.engine import Embedded
from pipeline.embedding.hashing import HashEngine
from pipeline.embedding.space import SpaceDefinition, space_id
from pipeline.lookup.query_vectors import QueryEmbedder
from pipeline.lookup.search import SearchService
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.lookup.spaces import OpenSpace, Serving
from pipeline.stores.lexical import LexicalIndex
from pipeline.stores.memory_spaces import MemorySpaces, MemoryVectorStates
from pipeline.stores.spaces import Placed, PlacedText, SpaceRecord
from pipeline.stores.store import AppliedPosition, Fetched, Partition
from pipeline.text import render_template
from schemas.bundle import FragmentReference, Meta, Stored
from schemas.context import ContextSpec
from tests.support.exact_vectors import ExactVectors
from tests.support.space_records import DIMENSION, Filters, text_record, vector_record

TEMPLATE = "{{ name }} of {{ maker }}{% if airline %} flown by {{ airline.name }}{% endif %}"
MARKED = ["year", "maker"]


def plane_spec(**more: Any) -> ContextSpec:
    embedding = {"engine": "hash", "dimension": DIMENSION, "template": TEMPLATE, "filters": MARKED}
    entity = {"source": "fleet", "table": "public.planes", "key": ["id"]}
    made = {"context": "plane", "version": 3, "root": "plane", "entities": {"plane": entity}, "fields": ["id"]}
    return ContextSpec.model_validate({**made, "embedding": embedding, "serving": {"budget_ms": 2000}, **more})


class Bundles:
    """A BundleReader in memory that can fail or hang."""

    def __init__(self, clock: SystemClock) -> None:
        self.found: dict[str, Fetched] = {}
        self.error: Exception | None = None
        self.fetches = 0
        self._clock = clock

    def put(self, key: str, values: dict[str, Any], airline: str | None = None) -> tuple[str, str]:
        """Its body hash and its text."""
        body = json.dumps({**values, "airline": None}).encode()
        references, fragments = [], {}
        if airline is not None:
            body = body.replace(b'"airline": null', b'"airline": ')
            references = [FragmentReference(len(body) - 1, "airline", airline)]
            fragments = {("airline", airline): Stored(1, Meta("a", 3), json.dumps({"name": airline}).encode())}
        body_hash = f"hash of {body.decode()}"
        self.found[key] = Fetched(Stored(1, Meta(body_hash, 3, {}, references), body), fragments)
        shown = {**values, "airline": None if airline is None else {"name": airline}}
        return body_hash, render_template(TEMPLATE, shown)

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        self.fetches += 1
        if self.error is not None:
            raise self.error
        return [self.found.get(key, Fetched(None, {})) for key in keys]

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        return {("a", 0): AppliedPosition("fleet", 1, "", self._clock.now_us())}


class Engine(HashEngine):
    """As `hash`; it can fail or wait, and counts."""

    error: Exception | None = None
    waits: Any = None
    calls = 0

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        self.calls += 1
        assert query, "searches embed queries"
        if self.waits is not None:
            self.waits.wait()
        if self.error is not None:
            raise self.error
        return super().embed(texts, query=query)


class StillReplica:
    """Indexes that nobody feeds but the test."""

    def __init__(self) -> None:
        self.vectors, self.texts = ExactVectors(DIMENSION, MARKED), LexicalIndex(MARKED)
        self.vectors_loaded = self.texts_loaded = True
        self.problem = ""
        self.behind_records: int | None = 0
        self.as_of_us: int | None = None
        self.started = self.closed = False
        self.holds = False

    async def holds_now(self, limit_s: float) -> bool:
        return self.holds

    async def start(self) -> None:
        self.started = True

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.closed = True


class SearchWorld:
    """`put` gives a bundle its text and vector; the pieces are open for tests to break."""

    def __init__(self, spec: ContextSpec | None = None) -> None:
        self.spec, self.clock = spec or plane_spec(), SystemClock()
        self.bundles, self.engine, self.replica = Bundles(self.clock), Engine(DIMENSION), StillReplica()
        self.spaces, self.states = MemorySpaces(), MemoryVectorStates()
        self.served = ServedContext(
            self.spec, self.bundles, {"airline": b"null"}, spaces=self.spaces, states=self.states
        )
        self.lookups = LookupService({"plane": self.served}, self.clock)
        assert self.spec.embedding is not None and self.spec.embedded_template is not None
        self.definition = SpaceDefinition(
            "plane", self.spec.version, self.spec.embedding, self.spec.embedded_template, self.engine.identity
        )
        self.space = space_id(self.definition)
        self.record = SpaceRecord(
            space=self.space, state="serving", definition=b"", canaries=b"", dimension=DIMENSION, created_us=1
        )
        self.open = OpenSpace(self.space, self.definition, self.record, self.replica)
        self.open.embedder = QueryEmbedder(self.engine)
        self.current: Serving | None = Serving(self.served, self.open)
        self.service = SearchService(self.lookups, self, self.clock, 10_000)
        self._offset = 0

    def serving(self, context: str) -> Serving | None:
        return self.current if context == "plane" else None

    def put(self, key: str, values: dict[str, Any], airline: str | None = None, *, vector: bool = True) -> None:
        body_hash, text = self.bundles.put(key, values, airline)
        filters: Filters = {name: values.get(name) for name in MARKED}
        made = text_record(self.space, text, 1, filters, body_hash)
        self.replica.texts.apply([PlacedText(0, self._next(), key, made)])
        self.replica.texts.refresh()
        if vector:
            made_vectors = vector_record(self.space, text, 1, filters, body_hash)
            self.replica.vectors.apply([Placed(0, self._next(), key, made_vectors)])

    def _next(self) -> int:
        self._offset += 1
        return self._offset
