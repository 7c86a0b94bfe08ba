"""A long text → pieces that fit the model: cut at a line, else a sentence, else a word, else a token. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.context import Chunks
from schemas.vectors import Chunk

_LINE = re.compile(r"\n+")
_SENTENCE = re.compile(r"[.!?…。！？]+[\"'»”)\]]*\s+|[。！？]")
_WORD = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Cut:
    """`tokens_left`: how many tokens lie behind the last piece that the rule allows."""

    chunks: list[Chunk]
    tokens_left: int = 0


def cut_text(text: str, token_ends: Sequence[int], rule: Chunks, tokens_max: int) -> Cut:
    """`token_ends`: where each token ends, ascending; `tokens_max`: what the model takes of a piece.

    Pieces cover the text without a gap, but for what is behind the last one; each begins `overlap_tokens` before the
    end of the one before. A piece ends in the second half of its room, at the best place there.
    """
    size = min(rule.tokens_max, tokens_max)
    overlap = min(rule.overlap_tokens, size // 2)
    count = len(token_ends)
    if count <= size:
        return Cut([Chunk(0, len(text))])
    chunks: list[Chunk] = []
    first = 0
    while len(chunks) < rule.chunks_max:
        start = token_ends[first - 1] if first else 0
        if first + size >= count:
            chunks.append(Chunk(_after_space(text, start), len(text)))
            return Cut(chunks)
        end = _best_end(text, token_ends[first + max(size // 2, overlap)], token_ends[first + size - 1])
        chunks.append(Chunk(_after_space(text, start), end))
        covered = max(bisect_right(token_ends, end), first + overlap + 1)
        first = covered - overlap
    return Cut(chunks, count - covered)


def _best_end(text: str, least: int, most: int) -> int:
    """Between two places of the text, the last end of a line, of a sentence, of a word; else the last place."""
    for pattern in (_LINE, _SENTENCE, _WORD):
        ends = [match.start() if pattern is _WORD else match.end() for match in pattern.finditer(text, least, most)]
        if ends:
            return ends[-1]
    return most


def _after_space(text: str, start: int) -> int:
    match = _WORD.match(text, start)
    return match.end() if match is not None and match.end() < len(text) else start
