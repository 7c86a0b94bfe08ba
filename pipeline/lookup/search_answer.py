"""An answer to a search: hits in order, each with what is known of its bundle, and by what they were found."""

from __future__ import annotations

from typing import Literal

import msgspec

from pipeline.lookup.answer import Answer, NotReached

AnsweredMode = Literal["vector", "lexical", "hybrid"]
_encode = msgspec.json.encode


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """The piece of the text that was found: characters `start` to `end`, piece number `chunk`, None for words around
    those of the query. `text`
    is None where the text is another one meanwhile."""

    start: int
    end: int
    chunk: int | None
    text: str | None


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """`score` orders the hits: the cosine, the BM25 score, or for hybrid the sum of reciprocal ranks. `cosine` and
    `bm25` are None where that search did not find it. `moved_on`: the bundle has another text now than the one that
    was found; `answer` is always the bundle of now, with its labels."""

    key: str
    score: float
    cosine: float | None
    bm25: float | None
    passage: Passage | None
    moved_on: bool
    answer: Answer

    def to_json(self, with_bundle: bool) -> bytes:
        """{"key","score","cosine","bm25","passage","moved_on","answer"}, the last as lookups answer."""
        head = _encode(
            {
                "key": self.key,
                "score": self.score,
                "cosine": self.cosine,
                "bm25": self.bm25,
                "passage": self.passage,
                "moved_on": self.moved_on,
            }
        )
        return b'%b,"answer":%b}' % (head[:-1], self.answer.to_json() if with_bundle else self.answer.labels_json())


class SearchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`degraded` says why less answered than was asked; None when all did. `behind_records`: how many records the
    indexes have not read yet, `index_age_ms`: the time since they had read everything; None when nobody knows.
    `dropped`: hits whose bundle is gone. All hits are of one space."""

    context: str
    space: str
    spec_version: int
    mode: AnsweredMode
    degraded: str | None
    behind_records: int | None
    index_age_ms: float | None
    dropped: int
    hits: list[SearchHit]
    with_bundles: bool = True
    not_reached: tuple[NotReached, ...] = ()
    """Positions that were asked for and that the hits, or the choice of them, may not hold."""

    def to_json(self) -> bytes:
        """{"context","space","spec_version","mode","degraded","index":{"behind_records","age_ms"},"dropped","hits"},
        with "not_reached" before the hits where there are such positions."""
        head = _encode(
            {
                "context": self.context,
                "space": self.space,
                "spec_version": self.spec_version,
                "mode": self.mode,
                "degraded": self.degraded,
                "index": {"behind_records": self.behind_records, "age_ms": self.index_age_ms},
                "dropped": self.dropped,
            }
        )
        if self.not_reached:
            head = b'%b,"not_reached":%b}' % (head[:-1], _encode(self.not_reached))
        hits = b",".join([hit.to_json(self.with_bundles) for hit in self.hits])
        return b'%b,"hits":[%b]}' % (head[:-1], hits)
