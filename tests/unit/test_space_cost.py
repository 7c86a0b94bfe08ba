"""What embedding all texts costs."""

from __future__ import annotations

import pytest

from pipeline.core.config import EmbeddingConfig
from pipeline.ops.space_cost import Estimate, estimate, limited_rate_per_s, mean_tokens, price_per_token
from schemas.context import Embedding

HASH = Embedding.model_validate({"engine": "hash"})
REMOTE = Embedding.model_validate({"engine": "openai", "model": "m", "endpoint": "cloud", "document_prefix": "d: "})


def config(**endpoint: float) -> EmbeddingConfig:
    return EmbeddingConfig.model_validate({"endpoints": {"cloud": {"url": "https://host/v1", **endpoint}}})


def test_tokens_price_and_rate_make_cost_and_time() -> None:
    price = price_per_token(REMOTE, config(price_per_million_tokens=0.02))
    assert price == pytest.approx(2e-8)
    assert mean_tokens(["one two", "one"], REMOTE) == 3.5
    found = estimate(1_000_000, 50.0, price, 200.0)
    assert found == Estimate(1_000_000, 50_000_000, pytest.approx(1.0), 5000.0)


def test_what_is_unknown_stays_unknown() -> None:
    assert price_per_token(REMOTE, config()) is None
    assert price_per_token(HASH, EmbeddingConfig()) == 0.0
    assert mean_tokens([], HASH) is None
    assert estimate(10, None, 0.1, None) == Estimate(10, None, None, None)
    assert estimate(10, None, 0.0, None).cost == 0.0
    assert estimate(0, 5.0, None, None).duration_s == 0.0


def test_an_endpoints_limits_bound_the_rate() -> None:
    assert limited_rate_per_s(REMOTE, config(tokens_per_minute=6000), 50.0) == 2.0
    assert limited_rate_per_s(REMOTE, config(requests_per_minute=60, request_texts_max=10), 50.0) == 10.0
    assert limited_rate_per_s(REMOTE, config(requests_per_minute=60, tokens_per_minute=6000), 50.0) == 2.0
    assert limited_rate_per_s(REMOTE, config(), 50.0) is None
    assert limited_rate_per_s(HASH, EmbeddingConfig(), 50.0) is None


def test_what_the_chunk_rule_leaves_out_is_not_paid() -> None:
    short = Embedding.model_validate(
        {"engine": "hash", "chunks": {"tokens_max": 8, "overlap_tokens": 0, "chunks_max": 2}}
    )
    assert mean_tokens(["word " * 100], short) == 16
