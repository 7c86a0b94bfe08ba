"""What else a client answers: the contexts there are, and what a search found. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from pipeline.client.bundle import Bundle
from pipeline.lookup.answer import NotReached
from pipeline.lookup.search_answer import Passage


class ContextInfo(msgspec.Struct, frozen=True):
    """One context: `key` are its key columns, joined by | in key texts; ages and budgets in milliseconds. `space`
    answers its searches now; None where it has none."""

    context: str
    version: int
    description: str
    key: tuple[str, ...]
    max_age_ms: float
    budget_ms: float
    space: str | None = None


class PastBundle(msgspec.Struct, frozen=True):
    """What an answer held, by its id. `written` is when its bundle was put together, `sections` when the linked
    sections in it were; `sources`: the newest change of each source in it, as {"lsn", "commit_time"} or
    {"write_time"}. `raw` is JSON, as it was answered; `hash` is of it."""

    context: str
    key: str
    id: str
    spec_version: int
    written: datetime
    sources: Mapping[str, Mapping[str, str | None]]
    sections: Mapping[str, datetime]
    left_out: Mapping[str, str]
    tokens: int | None
    hash: str
    raw: bytes

    @property
    def data(self) -> Any:
        """Decoded anew with each call. Raises Poison for JSON that no reader takes."""
        from pipeline.text import decode_bundle

        return decode_bundle(self.raw)


class Hit(msgspec.Struct, frozen=True):
    """`score` orders the hits: the cosine, the BM25 score, or the sum of reciprocal ranks. `bundle` is the one of now,
    with its labels; `moved_on`: its text has changed since it was found."""

    key: str
    score: float
    cosine: float | None
    bm25: float | None
    passage: Passage | None
    moved_on: bool
    bundle: Bundle


class Found(msgspec.Struct, frozen=True):
    """What a search found, best first. `degraded` says why less answered than was asked; None when all did.
    `behind_records`, `index_age_ms`: how far behind the index is; None when nobody knows."""

    context: str
    space: str
    spec_version: int
    mode: Literal["vector", "lexical", "hybrid"]
    degraded: str | None
    behind_records: int | None
    index_age_ms: float | None
    dropped: int
    hits: tuple[Hit, ...]
    not_reached: tuple[NotReached, ...] = ()
