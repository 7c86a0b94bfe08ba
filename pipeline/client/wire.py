"""Answers of the HTTP interface → values. The bundle's bytes stay as they came. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar, cast

import msgspec

from pipeline.client.bundle import Bundle
from pipeline.client.results import ContextInfo, Found, Hit, PastBundle
from pipeline.lookup.answer import Answer, EmbeddingLabel, NotReached, Rung, Status
from pipeline.lookup.search_answer import Passage

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NULL = msgspec.Raw(b"null")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|[^"\[\]{}]+', re.DOTALL)
T = TypeVar("T")


class _AsOf(msgspec.Struct):
    as_of: datetime | None


class _LeftOut(msgspec.Struct):
    section: str
    reason: str


class _Answer(msgspec.Struct):
    """See lookup.answer.Answer.to_json."""

    context: str
    key: str
    status: str
    as_of: dict[str, datetime | None]
    age_ms: dict[str, float | None]
    spec_version: int
    hash: str | None
    sections: dict[str, _AsOf] = {}
    left_out: list[_LeftOut] = []
    rung: str = "store"
    id: str | None = None
    tokens: int | None = None
    position: dict[str, str] = {}
    not_reached: tuple[NotReached, ...] = ()
    embedding: EmbeddingLabel | None = None
    bundle: msgspec.Raw = _NULL


class _Answers(msgspec.Struct):
    answers: list[_Answer]


class _Contexts(msgspec.Struct):
    contexts: list[ContextInfo]


class _Hit(msgspec.Struct):
    key: str
    score: float
    cosine: float | None
    bm25: float | None
    passage: Passage | None
    moved_on: bool
    answer: _Answer


class _Index(msgspec.Struct):
    behind_records: int | None
    age_ms: float | None


class _Search(msgspec.Struct):
    context: str
    space: str
    spec_version: int
    mode: Literal["vector", "lexical", "hybrid"]
    degraded: str | None
    index: _Index
    dropped: int
    hits: list[_Hit]
    not_reached: tuple[NotReached, ...] = ()


class _Written(msgspec.Struct):
    written: datetime


class _Past(msgspec.Struct):
    """See lookup.history.PastBundle.to_json."""

    context: str
    key: str
    id: str
    spec_version: int
    written: datetime
    sources: dict[str, dict[str, str | None]]
    sections: dict[str, _Written]
    left_out: list[_LeftOut]
    tokens: int | None
    hash: str
    bundle: msgspec.Raw


class Problem(msgspec.Struct):
    """An application/problem+json."""

    detail: str = ""
    mistakes: list[str] = []


_DECODE_ANSWER = msgspec.json.Decoder(_Answer).decode
_DECODE_ANSWERS = msgspec.json.Decoder(_Answers).decode
_DECODE_CONTEXTS = msgspec.json.Decoder(_Contexts).decode
_DECODE_SEARCH = msgspec.json.Decoder(_Search).decode
_DECODE_PAST = msgspec.json.Decoder(_Past).decode
_DECODE_PROBLEM = msgspec.json.Decoder(Problem).decode

NotOurs: Any = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What every function here raises for bytes that `ctxpipe serve` did not write."""


def read_answer(body: bytes) -> Bundle:
    wire, bundles = _decoded(_DECODE_ANSWER, body, 1)
    return _bundle(wire, bundles)


def read_answers(body: bytes) -> list[Bundle]:
    wire, bundles = _decoded(_DECODE_ANSWERS, body, 3)
    return [_bundle(answer, bundles) for answer in wire.answers]


def read_contexts(body: bytes) -> list[ContextInfo]:
    return _DECODE_CONTEXTS(body).contexts


def read_found(body: bytes) -> Found:
    found, bundles = _decoded(_DECODE_SEARCH, body, 4)
    return Found(
        found.context,
        found.space,
        found.spec_version,
        found.mode,
        found.degraded,
        found.index.behind_records,
        found.index.age_ms,
        found.dropped,
        tuple(_hit(hit, bundles) for hit in found.hits),
        found.not_reached,
    )


def read_past(body: bytes) -> PastBundle:
    past, bundles = _decoded(_DECODE_PAST, body, 1)
    return PastBundle(
        past.context,
        past.key,
        past.id,
        past.spec_version,
        past.written,
        past.sources,
        {path: one.written for path, one in past.sections.items()},
        {one.section: one.reason for one in past.left_out},
        past.tokens,
        past.hash,
        _bytes_of(past.bundle, bundles) or b"null",
    )


def read_problem(body: bytes) -> Problem:
    return _DECODE_PROBLEM(body)


def _hit(hit: _Hit, bundles: list[bytes] | None) -> Hit:
    return Hit(hit.key, hit.score, hit.cosine, hit.bm25, hit.passage, hit.moved_on, _bundle(hit.answer, bundles))


def _decoded(decode: Callable[[bytes], T], body: bytes, depth: int) -> tuple[T, list[bytes] | None]:
    """The labels, and the bundles where they had to be taken out: a column of JSON can bring what the decoder takes in
    no place, half of a character for one. Objects that hold a bundle are nested `depth` deep."""
    try:
        return decode(body), None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        apart, bundles = _apart(body, depth)
        if not bundles:
            raise
        return decode(apart), bundles


def _apart(body: bytes, depth: int) -> tuple[bytes, list[bytes]]:
    """The body with a number in place of each bundle, which is the last member of its object; and the bundles."""
    pieces: list[bytes] = []
    bundles: list[bytes] = []
    level, begun, kept = 0, -1, 0
    for match in _TOKEN.finditer(body):
        sign = match[0][:1]
        if sign in b"{[":
            level += 1
        elif sign in b"}]":
            level -= 1
            if begun >= 0 and level <= depth:
                end = match.end() if level == depth else match.start()
                pieces += (body[kept:begun], b"%d" % len(bundles))
                bundles.append(body[begun:end])
                begun, kept = -1, end
        elif begun < 0 and level == depth and match[0] == b'"bundle"' and body[match.end() : match.end() + 1] == b":":
            begun = match.end() + 1
    return b"".join((*pieces, body[kept:])), bundles


def _bytes_of(raw: msgspec.Raw, bundles: list[bytes] | None) -> bytes | None:
    body = bytes(raw) if bundles is None else bundles[int(bytes(raw))]
    return None if body == b"null" else body


def _bundle(wire: _Answer, bundles: list[bytes] | None) -> Bundle:
    answer = Answer(
        context=wire.context,
        key=wire.key,
        status=cast(Status, wire.status),
        as_of_us={source: _time_us(moment) for source, moment in wire.as_of.items()},
        age_ms=wire.age_ms,
        spec_version=wire.spec_version,
        hash=wire.hash,
        bundle=_bytes_of(wire.bundle, bundles),
        embedding=wire.embedding,
        sections={path: _time_us(section.as_of) for path, section in wire.sections.items()},
        left_out={one.section: one.reason for one in wire.left_out},
        tokens=wire.tokens,
        position=wire.position,
        not_reached=wire.not_reached,
        id=wire.id,
        rung=cast(Rung, wire.rung),
    )
    return Bundle(answer)


def _time_us(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND
