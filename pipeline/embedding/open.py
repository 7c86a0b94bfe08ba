"""A spec's `embedding` and the configuration's → an engine that is ready; imports only what that engine needs."""

from __future__ import annotations

from pipeline.core.config import EmbeddingConfig
from pipeline.core.errors import ConfigError
from pipeline.embedding.engine import Engine
from pipeline.embedding.packages import require
from schemas.context import Embedding


def open_engine(embedding: Embedding, config: EmbeddingConfig) -> Engine:
    """Blocks while the model is loaded: up to some seconds.

    Raises ConfigError (no such model, directory or endpoint, another precision, files that were changed) and
    EnvironmentProblem (a package or CUDA is missing, an endpoint that must be asked is away).
    """
    require("numpy")
    mistakes = mistakes_of_embedding(embedding, config)
    if mistakes:
        raise ConfigError(mistakes)
    if embedding.engine == "hash":
        from pipeline.embedding.hashing import DIMENSION, HashEngine

        return HashEngine(embedding.dimension or DIMENSION, embedding.document_prefix, embedding.query_prefix)
    if embedding.engine == "openai":
        from pipeline.embedding.openai import open_openai

        return open_openai(embedding, config)
    if embedding.engine == "onnx":
        from pipeline.embedding.onnx import open_onnx

        return open_onnx(embedding, config)
    from pipeline.embedding.sentence import open_sentence_transformers

    return open_sentence_transformers(embedding, config)


def mistakes_of_embedding(embedding: Embedding, config: EmbeddingConfig) -> list[str]:
    """What can be told without loading anything."""
    mistakes = []
    local = embedding.engine in ("sentence-transformers", "onnx")
    if local and embedding.dimension is not None:
        mistakes.append(f"embedding: the model of {embedding.engine} has its own dimension; take 'dimension' out")
    if embedding.device == "cuda" and embedding.engine != "sentence-transformers":
        mistakes.append(f"embedding: {embedding.engine} takes no device: cuda; only sentence-transformers does")
    if embedding.precision == "int8" and embedding.engine != "onnx":
        mistakes.append(f"embedding: {embedding.engine} has no precision: int8; engine: onnx has, after a space export")
    if embedding.engine == "openai" and embedding.endpoint not in config.endpoints:
        known = ", ".join(sorted(config.endpoints)) or "none"
        mistakes.append(
            f"embedding: the configuration has no endpoint {embedding.endpoint!r} under 'embedding: endpoints:' "
            f"(known: {known})"
        )
    return mistakes
