"""Scores of search hits computed again: question and text through the engine of the space that the answer names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from deploy.demo.mixed import MixedAnswers
from pipeline.core.config import EmbeddingConfig
from pipeline.embedding.open import open_engine
from pipeline.embedding.space import SpaceDefinition

if TYPE_CHECKING:
    import numpy


def check_scores(
    answers: MixedAnswers,
    spaces: Mapping[str, SpaceDefinition],
    config: EmbeddingConfig,
    advance: Callable[[int], None] = lambda count: None,
) -> int:
    """Blocks. Counts answers with a wrong score as mixed; returns how many different scores there were."""
    shown = {scored.space for scored in answers.scores}
    engines = {name: _SpaceCosine(definition, config) for name, definition in spaces.items() if name in shown}
    try:
        return answers.count_wrong_scores({name: engine.cosine for name, engine in engines.items()}, advance)
    finally:
        for engine in engines.values():
            engine.close()


class _SpaceCosine:
    def __init__(self, definition: SpaceDefinition, config: EmbeddingConfig) -> None:
        self._engine = open_engine(definition.embedding, config)
        self._known: dict[tuple[str, bool], numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]] = {}

    def cosine(self, question: str, text: str) -> float:
        return float(self._vector(question, True) @ self._vector(text, False))

    def close(self) -> None:
        self._engine.close()

    def _vector(self, text: str, query: bool) -> numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]:
        found = self._known.get((text, query))
        if found is None:
            found = self._known[text, query] = self._engine.embed([text], query=query).vectors[0]
        return found
