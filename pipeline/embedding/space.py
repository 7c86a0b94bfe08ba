"""What an embedding space is: everything that decides a vector, under one id. Vectors of two ids are never compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
from pydantic import ValidationError

from pipeline.core.errors import Fatal
from pipeline.embedding.engine import Engine, EngineIdentity
from schemas.context import ContextSpec, Embedding
from schemas.errors import DecodeError

if TYPE_CHECKING:
    import numpy

    Matrix = numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]

SPACE_ID_LENGTH = 12
CANARIES = (
    "The quick brown fox jumps over the lazy dog.",
    "A wide-body aircraft with two engines, built in 1988.",
    "flight departed 42 minutes late because of thunderstorms",
    "Los Angeles International Airport",
    "0123456789 3.14159 -273.15 1e6",
    "Zürich, São Paulo, 東京, Москва",
    "x",
    "invoice overdue customer reminder payment bank transfer second notice " * 8,
)
"""Embedded whenever a space is opened: a model that answers differently under the same name is found out."""

_COSINE_MIN = {"float32": 0.9999, "int8": 0.99}
_REMOTE_COSINE_MIN = 0.999
"""Remote models compute a text a little differently from call to call."""


@dataclass(frozen=True, slots=True)
class SpaceDefinition:
    """`embedding` is the spec's section, `template` the one that is embedded; `identity` what the engine said."""

    context: str
    version: int
    embedding: Embedding
    template: str
    identity: EngineIdentity


class _Wire(msgspec.Struct, frozen=True):
    context: str
    version: int
    embedding: msgspec.Raw
    template: str
    identity: EngineIdentity


def define_space(spec: ContextSpec, identity: EngineIdentity) -> SpaceDefinition:
    """The space that a spec asks for. Raises ValueError for one without an embedding."""
    if spec.embedding is None or spec.embedded_template is None:
        raise ValueError(f"context {spec.context} declares no embedding")
    return SpaceDefinition(spec.context, spec.version, spec.embedding, spec.embedded_template, identity)


def as_configured(definition: SpaceDefinition, spec: ContextSpec) -> SpaceDefinition:
    """The same space with the device and the endpoint that the spec names now, which decide no vector; as it was
    recorded where the spec asks for another space meanwhile."""
    if spec.embedding is None or spec.embedded_template != definition.template:
        return definition
    now = {"device": spec.embedding.device, "endpoint": spec.embedding.endpoint}
    embedding = definition.embedding.model_copy(update=now)
    beside = {"promotion", "gate", "template"}
    same = embedding.model_dump(exclude=beside) == spec.embedding.model_dump(exclude=beside)
    return replace(definition, embedding=embedding) if same else definition


def space_id(definition: SpaceDefinition) -> str:
    """12 hex digits of the SHA-256 over all that decides a vector and what a search may ask of it. Device, endpoint,
    promotion and gate decide neither."""
    embedding = definition.embedding
    parts = {
        "identity": msgspec.to_builtins(definition.identity),
        "template": definition.template,
        "chunks": embedding.chunks.model_dump(),
        "filters": sorted(embedding.filters),
        "prefixes": [embedding.document_prefix, embedding.query_prefix],
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:SPACE_ID_LENGTH]


def encode_definition(definition: SpaceDefinition) -> bytes:
    """One JSON object."""
    embedding = msgspec.Raw(definition.embedding.model_dump_json(exclude_defaults=True).encode())
    return msgspec.json.encode(
        _Wire(definition.context, definition.version, embedding, definition.template, definition.identity)
    )


def decode_definition(data: bytes) -> SpaceDefinition:
    """Raises DecodeError for what another release wrote and this one does not know."""
    try:
        wire = msgspec.json.decode(data, type=_Wire)
        embedding = Embedding.model_validate_json(bytes(wire.embedding))
    except (msgspec.DecodeError, ValidationError) as error:
        raise DecodeError(f"the stored definition of an embedding space can't be read: {error}") from error
    return SpaceDefinition(wire.context, wire.version, embedding, wire.template, wire.identity)


def canary_vectors(engine: Engine) -> bytes:
    """Blocks. The canaries' vectors, float32 little-endian; raises as Engine.embed."""
    return b"".join(
        engine.embed(CANARIES[first : first + engine.texts_max]).vectors.astype("<f4").tobytes()
        for first in range(0, len(CANARIES), engine.texts_max)
    )


def check_canaries(space: str, engine: Engine, recorded: bytes) -> float:
    """Blocks. The least cosine between what the model answers now and what it answered when the space began.

    Raises Fatal where that is another model: none of its vectors may be written or compared.
    """
    import numpy

    dimension = engine.identity.dimension
    now = numpy.frombuffer(canary_vectors(engine), "<f4").reshape(len(CANARIES), dimension)
    then = numpy.frombuffer(recorded, "<f4")
    if then.size != now.size:
        raise Fatal(f"space {space}: its record has {then.size // len(CANARIES)} dimensions, the model {dimension}")
    least = float((now * then.reshape(now.shape)).sum(axis=1).min())
    if least < least_cosine(engine.identity):
        raise Fatal(
            f"space {space}: model {engine.identity.model or engine.identity.engine} answers its canary texts "
            f"differently from when the space began (cosine {least:.4f}). It is another model under the same name: "
            "bring the old one back, or give the new one another revision, which begins a new space."
        )
    return least


def least_cosine(identity: EngineIdentity) -> float:
    """Below it, two answers to one text are not of one model."""
    if not identity.weights and identity.engine == "openai":
        return _REMOTE_COSINE_MIN
    return _COSINE_MIN.get(identity.number_type, _REMOTE_COSINE_MIN)
