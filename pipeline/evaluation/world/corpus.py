"""Bundles of a context → both indexes of its embedding space, as production fills and searches them.

Texts, chunks, vectors and indexes are made by production's parts, with the engine `hash` whatever the spec names: it
needs no model and gives the same vectors everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import Poison
from pipeline.embedded_text import EmbeddedText, TextMaker
from pipeline.embedding.chunks import cut_text
from pipeline.embedding.hashing import HashEngine
from pipeline.evaluation.world.filled import Filled
from pipeline.evaluation.world.spaces import Space
from pipeline.lookup.query_vectors import QueryEmbedder
from pipeline.stores.lexical import LexicalIndex
from pipeline.stores.spaces import Placed, PlacedText
from pipeline.stores.vector_index import SegmentedIndex
from pipeline.stores.vector_limits import IndexLimits
from schemas.vectors import Chunk, TextRecord, VectorRecord

if TYPE_CHECKING:
    from pipeline.stores.spaces import Vector

KEPT_QUERIES_MAX = 10_000


class Corpus:
    """Both indexes of one context over one file, read to the end. Fulfils SpaceReplica; nothing feeds it."""

    vectors_loaded = texts_loaded = True
    problem = ""
    behind_records: int | None = 0
    as_of_us: int | None = None

    def __init__(self, filled: Filled, space: Space) -> None:
        embedding, template = filled.spec.embedding, filled.spec.embedded_template
        assert embedding is not None and template is not None
        self.vectors = SegmentedIndex(space.record.space, space.record.dimension, embedding.filters, IndexLimits())
        self.texts = LexicalIndex(embedding.filters)
        self.embedder = _Embedder(space.engine)
        maker = TextMaker(template, embedding.filters, filled.empty)
        records = [(key, *_records(filled, space, key, text)) for key, text in _texts(filled, maker)]
        self.texts.apply([PlacedText(0, number, key, text) for number, (key, text, _) in enumerate(records)])
        self.texts.refresh()
        self.vectors.apply([Placed(0, number, key, vector) for number, (key, _, vector) in enumerate(records)])

    async def start(self) -> None:
        """Nothing to do."""

    async def run(self) -> None:
        """Nothing to do."""

    async def holds_now(self, limit_s: float) -> bool:
        return True

    async def close(self) -> None:
        """Other cases use it, too."""


class _Embedder(QueryEmbedder):
    """In the event loop itself, whose clock stands still meanwhile."""

    def __init__(self, engine: HashEngine) -> None:
        self._hash, self._known = engine, dict[str, "Vector"]()

    async def embed(self, text: str) -> Vector:
        if text not in self._known:
            if len(self._known) >= KEPT_QUERIES_MAX:
                self._known.clear()
            self._known[text] = self._hash.embed([text], query=True).vectors[0]
        return self._known[text]

    async def close(self) -> None:
        """Other cases use it, too."""


def _texts(filled: Filled, maker: TextMaker) -> Iterator[tuple[str, EmbeddedText]]:
    """Of every bundle that has a text; one that none can be made of is set aside, as the text stage does."""
    for key in filled.keys:
        try:
            made = maker.make(filled.fetched(key))
        except Poison:
            continue
        if made.text.strip():
            yield key, made


def _records(filled: Filled, space: Space, key: str, made: EmbeddedText) -> tuple[TextRecord, VectorRecord]:
    """As the stages of texts and of vectors write them."""
    embedding, bundle = filled.spec.embedding, filled.fetched(key).bundle
    assert embedding is not None and bundle is not None and bundle.meta is not None
    engine, text = space.engine, made.text
    cut = cut_text(text, engine.token_ends(text), embedding.chunks, engine.tokens_max)
    chunks: list[Chunk] = [one for one in cut.chunks if text[one.start : one.end].strip()]
    embedded = [engine.embed([text[one.start : one.end]]).vectors for one in chunks]
    shared: dict[str, Any] = {
        "space": space.record.space,
        "counter": bundle.counter,
        "bundle_hash": bundle.meta.hash,
        "text_hash": made.text_hash,
        "filters": made.filters,
        "commit_time_us": made.commit_time_us,
    }
    vectors = b"".join(one.astype("<f4").tobytes() for one in embedded)
    return (
        TextRecord(text=text, characters_cut=made.characters_cut, **shared),
        VectorRecord(
            dimension=space.record.dimension, chunks=chunks, vectors=vectors, tokens_cut=cut.tokens_left, **shared
        ),
    )
