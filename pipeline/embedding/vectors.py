"""What every engine does with texts before and with vectors after its model: nothing empty in, only unit length out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.core.errors import Fatal, Poison

if TYPE_CHECKING:
    import numpy

    Matrix = numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]

WORDS_AND_SIGNS = re.compile(r"\w+|[^\w\s]")


def prepare_texts(texts: Sequence[str], prefix: str = "") -> list[str]:
    """The prefix before each; halves of characters that are no Unicode become "?". Raises Poison for an empty text."""
    prepared = []
    for number, text in enumerate(texts):
        if not text or text.isspace():
            raise Poison(f"text {number + 1} of {len(texts)} is empty: there is nothing to embed")
        prepared.append((prefix + text).encode("utf-8", "replace").decode())
    return prepared


def unit_vectors(vectors: Matrix, texts: int, dimension: int, model: str) -> Matrix:
    """Float32 with each row of length 1. Raises Fatal for another shape, NaN, infinity and rows of zeros."""
    import numpy

    if vectors.shape != (texts, dimension):
        raise Fatal(f"{model} gave vectors of shape {vectors.shape} for {texts} texts of {dimension} dimensions")
    wide = numpy.asarray(vectors, numpy.float64)
    lengths = numpy.linalg.norm(wide, axis=1, keepdims=True)
    wrong = ~numpy.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
    if wrong.any():
        raise Fatal(
            f"{model} gave NaN, infinity or zeros for {int(wrong.sum())} of {texts} texts; its files are broken"
        )
    unit: Matrix = (wide / lengths).astype(numpy.float32)
    return unit


def word_ends(text: str) -> list[int]:
    """Where each word and each sign ends, for engines without a tokenizer at hand."""
    return [match.end() for match in WORDS_AND_SIGNS.finditer(text)]
