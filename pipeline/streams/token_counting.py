"""Between a spec and the bundles that workers write: what counts the tokens of their sections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.core.config import EmbeddingConfig
from pipeline.embedding.counting import open_counter, tokenizer_file
from pipeline.text import WORDS, count_tokens
from schemas.context import ContextSpec


@dataclass(frozen=True, slots=True)
class TokenCounting:
    """`count` is None where the spec asks for no counts; `digest` tells one tokenizer from another."""

    count: Callable[[str], int] | None = None
    digest: str = ""


def token_counting(spec: ContextSpec, config: EmbeddingConfig) -> TokenCounting:
    """Raises ConfigError for a tokenizer that is not there or can't be read, EnvironmentProblem without its package."""
    name = None if spec.text is None else spec.text.tokenizer
    if name is None:
        return TokenCounting()
    if name == WORDS:
        return TokenCounting(count_tokens)
    return TokenCounting(*open_counter(tokenizer_file(name, config)))
