"""Hits of a vector search and of a lexical one → one order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.stores.spaces import Hit

Item = TypeVar("Item")
RANK_CONSTANT = 60
"""Of reciprocal rank fusion, as its authors chose it (Cormack, Clarke, Büttcher 2009): a hit at rank r of a list, the
first at 1, adds 1 / (60 + r). The first places weigh more, but none of them alone beats two good ones."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A hit in its place. `hit` is of the vector search, `bm25` of the lexical one; None where that did not find it."""

    key: str
    score: float
    cosine: float | None = None
    bm25: float | None = None
    hit: Hit | None = None


def by_vector(hits: Sequence[Hit]) -> list[Ranked]:
    return [Ranked(hit.key, hit.score, cosine=hit.score, hit=hit) for hit in hits]


def by_words(hits: Sequence[tuple[str, float]]) -> list[Ranked]:
    return [Ranked(key, score, bm25=score) for key, score in hits]


def fused(
    vectors: Sequence[Hit],
    words: Sequence[tuple[str, float]],
    cosine_of: Callable[[str], Hit | None],
    min_score: float | None,
) -> list[Ranked]:
    """Best first, ties by key. `cosine_of` gives the best piece of a bundle that only its words found; with a
    `min_score`, one without a cosine, or below it, is left out."""
    found = {hit.key: Ranked(hit.key, 1 / (RANK_CONSTANT + rank), hit.score, hit=hit) for rank, hit in _ranks(vectors)}
    for rank, (key, bm25) in _ranks(words):
        part = 1 / (RANK_CONSTANT + rank)
        known = found.get(key)
        if known is not None:
            found[key] = replace(known, score=known.score + part, bm25=bm25)
            continue
        hit = cosine_of(key)
        cosine = None if hit is None else hit.score
        if min_score is None or (cosine is not None and cosine >= min_score):
            found[key] = Ranked(key, part, cosine, bm25, hit)
    return sorted(found.values(), key=lambda ranked: (-ranked.score, ranked.key))


def _ranks(hits: Sequence[Item]) -> list[tuple[int, Item]]:
    return list(enumerate(hits, 1))
