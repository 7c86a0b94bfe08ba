"""The engine `hash`: words and n-grams of characters hashed into a vector; no model, the same on every machine.

For tests, evaluation and contexts whose texts meet by their words. Numpy and the standard library only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.embedding.engine import Embedded, EngineIdentity
from pipeline.embedding.vectors import WORDS_AND_SIGNS, prepare_texts, unit_vectors, word_ends

if TYPE_CHECKING:
    import numpy

    Hashes: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.uint64]]
    Matrix: TypeAlias = numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]

DIMENSION = 384
TOKENS_MAX = 8192
TEXTS_MAX = 256
CHARACTERS_AT_ONCE_MAX = 500_000
"""Of one pass: each character takes some hundred bytes there."""

_RULE = "words-and-3-to-5-grams-1"
"""Begins a new space when anything below decides another vector."""
_NGRAMS = (3, 4, 5)
_WORD_WEIGHT = 4
_BASE, _STEP = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


class HashEngine:
    """See Engine. Thousands of texts a second on one core."""

    texts_max = TEXTS_MAX
    tokens_max = TOKENS_MAX

    def __init__(self, dimension: int = DIMENSION, document_prefix: str = "", query_prefix: str = "") -> None:
        self.identity = EngineIdentity(engine="hash", model=_RULE, pooling="sum", dimension=dimension)
        self._prefixes = {False: document_prefix, True: query_prefix}

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        prefix = self._prefixes[query]
        words = [_words(text) for text in prepare_texts(texts, prefix)]
        first = len(_words(prefix))
        tokens = [max(1, len(found) - first) for found in words]
        cut = [max(0, len(found) - TOKENS_MAX) for found in words]
        lines = [f" {' '.join(found[:TOKENS_MAX])} " for found in words]
        return Embedded(_vectors(lines, self.identity.dimension), tokens, cut)

    def token_ends(self, text: str) -> list[int]:
        return word_ends(text)

    def close(self) -> None:
        """Holds nothing."""


def _words(text: str) -> list[str]:
    return WORDS_AND_SIGNS.findall(unicodedata.normalize("NFKC", text).casefold())


def _vectors(lines: list[str], dimension: int) -> Matrix:
    import numpy

    if not lines:
        return numpy.zeros((0, dimension), numpy.float32)
    sums = numpy.concatenate([_sums(group, dimension) for group in _groups(lines)])
    empty = ~sums.any(axis=1)
    # Features that cancel each other out to the last one: the text is still some text.
    sums[empty, 0] = 1
    damped = numpy.sign(sums) * numpy.sqrt(numpy.abs(sums))
    return unit_vectors(damped, len(lines), dimension, "hash")


def _groups(lines: list[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for line in lines:
        if group and size + len(line) > CHARACTERS_AT_ONCE_MAX:
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line)
    if group:
        yield group


def _sums(lines: list[str], dimension: int) -> Any:
    """Per line and place, the signs of the features that fall there. Integers, so that no order of adding matters."""
    import numpy

    characters = numpy.frombuffer("".join(lines).encode("utf-32-le"), "<u4").astype(numpy.uint64)
    owner = numpy.repeat(numpy.arange(len(lines)), [len(line) for line in lines])
    mixed = _mix((characters + numpy.uint64(1)) * numpy.uint64(_BASE))
    sums = numpy.zeros(len(lines) * dimension)
    for size in _NGRAMS:
        count = len(characters) - size + 1
        if count < 1:
            continue
        hashes = numpy.full(count, size, numpy.uint64)
        for place in range(size):
            hashes = hashes * numpy.uint64(_STEP) + mixed[place : place + count]
        inside = owner[:count] == owner[size - 1 :]
        sums += _counted(_mix(hashes[inside]), owner[:count][inside], len(lines), dimension)
    starts, word_hashes = _word_hashes(characters, mixed)
    sums += _WORD_WEIGHT * _counted(word_hashes, owner[starts], len(lines), dimension)
    return sums.reshape(len(lines), dimension)


def _word_hashes(characters: Hashes, mixed: Hashes) -> tuple[Any, Hashes]:
    """Where each word begins, and its hash: the sum of its characters, each mixed with its place in the word."""
    import numpy

    space = characters == ord(" ")
    starts = numpy.flatnonzero(space[:-1] & ~space[1:]) + 1
    places = numpy.arange(len(characters), dtype=numpy.uint64)
    before = numpy.maximum.accumulate(numpy.where(space, places, numpy.uint64(0)))
    parts = numpy.where(space, numpy.uint64(0), _mix(mixed + (places - before) * numpy.uint64(_STEP)))
    return starts, _mix(numpy.add.reduceat(parts, starts))


def _counted(hashes: Hashes, owner: Any, lines: int, dimension: int) -> Any:
    import numpy

    places = owner * dimension + (hashes % numpy.uint64(dimension)).astype(numpy.int64)
    signs = 1.0 - 2.0 * (hashes >> numpy.uint64(63)).astype(numpy.float64)
    return numpy.bincount(places, signs, minlength=lines * dimension)


def _mix(values: Hashes) -> Hashes:
    """The finishing steps of SplitMix64: every bit depends on every bit."""
    import numpy

    values = (values ^ (values >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return values ^ (values >> numpy.uint64(31))
