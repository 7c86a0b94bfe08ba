"""Ranked hits and the bundles of now → hits of an answer, labelled where the text that was found is not theirs now."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jinja2 import TemplateError

from pipeline.core.errors import Poison
from pipeline.lookup.ranking import Ranked
from pipeline.lookup.search_answer import Passage, SearchHit
from pipeline.lookup.service import Found
from pipeline.lookup.spaces import SearchedTexts
from pipeline.text import decode_bundle, names_used, render_template
from schemas.bundle import Meta
from schemas.vectors import hash_text

PASSAGE_CHARACTERS = 400
"""Of the piece that is shown of a text that was found by its words."""
_WORD = re.compile(r"\w+")


def hits_of(
    pairs: Sequence[tuple[Ranked, Found]], template: str, texts: SearchedTexts, query: str | None
) -> list[SearchHit]:
    """Blocks: a bundle that is not the one whose text was found is rendered again. `template` is the space's; each
    Found has a bundle."""
    return [_hit_of(ranked, found, template, texts, query) for ranked, found in pairs]


def _hit_of(ranked: Ranked, found: Found, template: str, texts: SearchedTexts, query: str | None) -> SearchHit:
    state = texts.state_of(ranked.key)
    of = ranked.hit or state
    return SearchHit(
        key=ranked.key,
        score=ranked.score,
        cosine=ranked.cosine,
        bm25=ranked.bm25,
        passage=_passage(ranked, None if state is None else state.text_hash, texts, query),
        moved_on=of is None or _moved_on(of.bundle_hash, of.text_hash, found, template),
        answer=found.answer,
    )


def _moved_on(bundle_hash: str, text_hash: str, found: Found, template: str) -> bool:
    """Whether the bundle of now has another text than the one that was found."""
    meta, bundle = found.meta, found.answer.bundle
    assert meta is not None and bundle is not None
    if meta.hash == bundle_hash and not shows_fragments(meta, template):
        return False
    try:
        return hash_text(render_template(template, decode_bundle(bundle))) != text_hash
    except Poison:
        return True


def shows_fragments(meta: Meta, template: str) -> bool:
    """Whether the text is made from linked sections too, which the bundle's hash leaves out."""
    try:
        used = names_used(template)
    except TemplateError:
        return True
    return any(reference.unit.partition(".")[0] in used for reference in meta.fragments)


def _passage(ranked: Ranked, newest: str | None, texts: SearchedTexts, query: str | None) -> Passage | None:
    if ranked.hit is not None:
        chunk = ranked.hit.chunk
        text = texts.text_of(ranked.key) if newest == ranked.hit.text_hash else None
        piece = None if text is None else text[chunk.start : chunk.end]
        return Passage(start=chunk.start, end=chunk.end, chunk=ranked.hit.chunk_number, text=piece)
    text = texts.text_of(ranked.key)
    if text is None:
        return None
    start, end = around_words(text, query or "")
    return Passage(start=start, end=end, chunk=None, text=text[start:end])


def around_words(text: str, query: str, characters: int = PASSAGE_CHARACTERS) -> tuple[int, int]:
    """From where to where a text is shown: around the first word of the query that stands in it."""
    lowered = text.lower()
    places = [lowered.find(word) for word in {match[0] for match in _WORD.finditer(query.lower())}]
    first = min((place for place in places if place >= 0), default=0)
    start = max(0, min(first - characters // 4, len(text) - characters))
    if start:
        start = text.find(" ", start, first) + 1 or start
    end = min(len(text), start + characters)
    if end < len(text):
        end = max(text.rfind(" ", first, end), first) or end
    return start, end if end > start else min(len(text), start + characters)
