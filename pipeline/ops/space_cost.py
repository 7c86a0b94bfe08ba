"""What it costs to embed all texts of a context, before it starts and while it goes on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.config import EmbeddingConfig
from pipeline.text import count_tokens
from schemas.context import Embedding

PER_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """For `texts` texts: tokens of all of them, None without a sample; `cost` in the endpoint's currency, None where a
    price or a sample is missing; `duration_s` None without a rate."""

    texts: int
    tokens: int | None
    cost: float | None
    duration_s: float | None


def price_per_token(embedding: Embedding, config: EmbeddingConfig) -> float | None:
    """0 for engines that run here; None where the configuration says no price."""
    if embedding.engine != "openai":
        return 0.0
    endpoint = config.endpoints.get(embedding.endpoint or "")
    price = endpoint.price_per_million_tokens if endpoint is not None else None
    return None if price is None else price / PER_MILLION


def limited_rate_per_s(embedding: Embedding, config: EmbeddingConfig, tokens_per_text: float) -> float | None:
    """Texts per second that an endpoint's limits allow; None where there are none."""
    endpoint = config.endpoints.get(embedding.endpoint or "") if embedding.engine == "openai" else None
    if endpoint is None:
        return None
    rates = []
    if endpoint.tokens_per_minute is not None:
        rates.append(endpoint.tokens_per_minute / 60 / max(1.0, tokens_per_text))
    if endpoint.requests_per_minute is not None:
        texts = min(endpoint.request_texts_max, endpoint.request_tokens_max / max(1.0, tokens_per_text))
        rates.append(endpoint.requests_per_minute / 60 * max(1.0, texts))
    return min(rates, default=None)


def mean_tokens(texts: Sequence[str], embedding: Embedding) -> float | None:
    """Words and signs per text, what the spec's chunk rule leaves out not counted; None without texts."""
    if not texts:
        return None
    chunks = embedding.chunks
    most = chunks.tokens_max * chunks.chunks_max
    return sum(min(most, count_tokens(embedding.document_prefix + text)) for text in texts) / len(texts)


def estimate(texts: int, tokens_per_text: float | None, price: float | None, rate_per_s: float | None) -> Estimate:
    """Of so many texts, at the price of a token and the texts that are embedded per second."""
    tokens = None if tokens_per_text is None else round(texts * tokens_per_text)
    cost = 0.0 if price == 0 else None if price is None or tokens is None else tokens * price
    duration_s = texts / rate_per_s if rate_per_s else (0.0 if not texts else None)
    return Estimate(texts, tokens, cost, duration_s)
