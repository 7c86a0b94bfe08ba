"""Which embedding space answers searches of a case: the one that the spec asks for, by the engine `hash`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import EnvironmentProblem
from pipeline.embedding.hashing import DIMENSION, HashEngine
from pipeline.embedding.space import SpaceDefinition, define_space, space_id
from pipeline.evaluation.values import Case
from pipeline.evaluation.world.files import WorldError
from pipeline.evaluation.world.filled import Filled, SuiteFiles, kept, source_of
from pipeline.evaluation.world.store import Store
from pipeline.lookup.served import ServedContext
from pipeline.lookup.spaces import OpenSpace, Serving
from pipeline.stores.memory_spaces import MemorySpaces
from pipeline.stores.spaces import SpaceRecord
from schemas.context import ContextSpec

if TYPE_CHECKING:
    from pipeline.evaluation.world.corpus import Corpus


@dataclass(frozen=True)
class Space:
    """The space that a context's spec asks for, by the engine `hash`."""

    engine: HashEngine
    definition: SpaceDefinition
    record: SpaceRecord


class Corpora:
    """Of one case. Fulfils ServingSpaces; an index is made when it is first searched, and kept for other cases."""

    def __init__(self, suite: SuiteFiles, case: Case) -> None:
        self._kept, self._source = kept(suite), source_of(case)
        self._contexts: Mapping[str, ServedContext] = {}
        self._filled: dict[str, Filled] = {}
        self._serving: dict[str, Serving] = {}

    def spaces_of(self, filled: Filled, store: Store) -> dict[str, Any]:
        """What ServedContext takes of a context's embedding space; nothing where it has none."""
        if filled.spec.embedding is None:
            return {}
        self._filled[filled.spec.context] = filled
        spaces = MemorySpaces()
        record = space_of(filled.spec).record
        spaces.records[record.space] = record
        return {"spaces": spaces, "states": store}

    def serve(self, contexts: Mapping[str, ServedContext]) -> None:
        self._contexts = contexts

    def serving(self, context: str) -> Serving | None:
        filled = self._filled.get(context)
        if filled is None:
            return None
        if context not in self._serving:
            space = space_of(filled.spec)
            place = (*self._source, context)
            corpus = self._kept.corpora.get(place)
            if corpus is None:
                corpus = self._kept.corpora[place] = _corpus(filled, space)
            opened = OpenSpace(space.record.space, space.definition, space.record, corpus)
            opened.embedder = corpus.embedder
            self._serving[context] = Serving(self._contexts[context], opened)
        return self._serving[context]


def space_of(spec: ContextSpec) -> Space:
    embedding = spec.embedding
    assert embedding is not None
    dimension = embedding.dimension or DIMENSION
    engine = HashEngine(dimension, embedding.document_prefix, embedding.query_prefix)
    definition = define_space(spec, engine.identity)
    record = SpaceRecord(
        space=space_id(definition), state="serving", definition=b"", canaries=b"", dimension=dimension, created_us=1
    )
    return Space(engine, definition, record)


def _corpus(filled: Filled, space: Space) -> Corpus:
    """Raises WorldError where a package is missing: only suites that search need them."""
    try:
        from pipeline.evaluation.world.corpus import Corpus

        return Corpus(filled, space)
    except (ImportError, EnvironmentProblem) as error:
        raise WorldError([f"searches of a suite need more packages: pip install 'ctxpipe[search]' ({error})"]) from None
