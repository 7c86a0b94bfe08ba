"""Bundles as the documents of retrievers: what a model reads, and labels as plain JSON values. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.client.bundle import Bundle
from pipeline.client.results import Found


class Page(NamedTuple):
    """`score` is None where nothing was compared."""

    text: str
    metadata: dict[str, Any]
    score: float | None


def found_pages(found: Found, template: str | None) -> list[Page]:
    """One per hit, best first."""
    return [
        _page(hit.bundle, template, hit.score, {"cosine": hit.cosine, "moved_on": hit.moved_on})
        for hit in found.hits
        if hit.bundle.raw is not None
    ]


def key_pages(bundles: Sequence[Bundle], template: str | None) -> list[Page]:
    """One per bundle, without those that are missing; a default bundle says so in its status."""
    return [_page(bundle, template, None, {}) for bundle in bundles if bundle.raw is not None]


def keys_of(query: str) -> list[str]:
    """One key per line."""
    return list(dict.fromkeys(_lines(query)))


def _lines(query: str) -> Iterator[str]:
    return (line.strip() for line in query.split("\n") if line.strip())


def _page(bundle: Bundle, template: str | None, score: float | None, more: Mapping[str, Any]) -> Page:
    text = (bundle.raw or b"").decode() if template is None else bundle.text(template)
    as_of = {source: None if moment is None else moment.isoformat() for source, moment in bundle.as_of.items()}
    metadata = {
        "context": bundle.context,
        "key": bundle.key,
        "status": bundle.status,
        "as_of": as_of,
        "age_ms": dict(bundle.age_ms),
        "id": bundle.id,
        "hash": bundle.hash,
        "spec_version": bundle.spec_version,
        "left_out": dict(bundle.left_out),
        **({} if score is None else {"score": score}),
        **more,
    }
    return Page(text, metadata, score)
