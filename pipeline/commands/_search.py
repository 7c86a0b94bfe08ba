"""Opens what searches read from: the replica of an embedding space, its engine, and the service over them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.clock import SystemClock
from pipeline.lookup.spaces import SpaceKeeper

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.embedding.engine import Engine
    from pipeline.embedding.space import SpaceDefinition
    from pipeline.lookup.service import LookupService
    from pipeline.stores.spaces import SpaceRecord
    from pipeline.streams.replica import KeptVectors, Replica
    from schemas.context import ContextSpec

SHARING_MAX = 16
"""Processes with one data directory."""


def open_keeper(config: Config, service: LookupService, folder: Path) -> SpaceKeeper:
    """Of all contexts that embed. `folder` keeps indexes between two starts."""

    def replica(definition: SpaceDefinition, record: SpaceRecord) -> Replica:
        spec = next((spec for spec in service.specs if spec.context == definition.context), None)
        return open_replica(config, definition, record, folder, spec)

    def engine(definition: SpaceDefinition) -> Engine:
        from pipeline.embedding.open import open_engine

        return open_engine(definition.embedding, config.embedding)

    return SpaceKeeper(service, replica, engine)


def open_replica(
    config: Config, definition: SpaceDefinition, record: SpaceRecord, folder: Path, spec: ContextSpec | None = None
) -> Replica:
    """To be started. Imports what reading Kafka needs, which contexts without an embedding do not. By its `spec` it is
    told how fresh vectors are when they can be found."""
    from pipeline.core import telemetry
    from pipeline.core.freshness import Freshness
    from pipeline.stores.lexical import LexicalIndex
    from pipeline.streams.index_proof import IndexProofs
    from pipeline.streams.journey import IndexJourneys
    from pipeline.streams.replica import OpenIndexes, Replica, ReplicatedSpace
    from pipeline.streams.replica_reader import SpaceReader
    from pipeline.streams.topics import Topics
    from schemas.topics import request_topic, space_group

    space = ReplicatedSpace(definition.context, definition.version, record.space, record.dimension)
    marked = definition.embedding.filters
    topics = (space.vector_topic, space.text_topic)
    reader = SpaceReader(config.kafka.bootstrap_servers, topics, **config.kafka.security)
    place = folder / "vectors" / definition.context / f"version-{definition.version}"
    indexes = OpenIndexes(lambda anew: open_vectors(record, marked, place, anew), lambda: LexicalIndex(marked))
    # Asked only while a search waits for a position.
    facts = Topics(
        config.kafka.bootstrap_servers, space_group(space.context, space.version, space.space), **config.kafka.security
    )
    requests = request_topic(space.context, space.version)
    proofs = IndexProofs(facts, requests, space.text_topic, space.vector_topic)
    clock, freshness = SystemClock(), None if spec is None else Freshness(spec.context, spec.serving, ("in_faiss",))
    journeys = IndexJourneys(space.context, space.space, clock, freshness, telemetry.traces())
    return Replica(space, reader, indexes, clock, proofs, journeys)


def open_vectors(record: SpaceRecord, marked: list[str], folder: Path, anew: bool) -> KeptVectors:
    """Blocks while a snapshot under `folder` is read. `anew`: without it.

    Processes that have the folder together keep an index each: the first one's is in the space's folder, the others'
    beside it. Raises EnvironmentProblem where faiss is missing or too many share the folder.
    """
    from pipeline.stores.vector_files import FolderTaken
    from pipeline.stores.vectors import open_index

    for number in range(1, SHARING_MAX):
        place = folder / (record.space if number == 1 else f"{record.space}-{number}")
        with suppress(FolderTaken):
            return open_index(place, record.space, record.dimension, marked, anew=anew)
    return open_index(folder / f"{record.space}-{SHARING_MAX}", record.space, record.dimension, marked, anew=anew)
