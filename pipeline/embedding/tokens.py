"""A model's own tokenizer (the package tokenizers): what the model sees of a text, and where its tokens end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.embedding.vectors import word_ends

CHARACTERS_AT_ONCE_MAX = 100_000
"""Longer texts are cut at spaces and the parts tokenised side by side: memory and time stay in bounds."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text: `ids` with the model's own signs around them; `count` without those, `cut` how many were too many."""

    ids: list[int]
    count: int
    cut: int


class TextTokenizer:
    """`length_max`: of what the model takes, with the signs around. May be used from several threads."""

    def __init__(self, tokenizer: Any, length_max: int) -> None:
        # A tokenizer's truncation and padding can't be changed beside its use; this one never has them.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        probe = tokenizer.encode("a").special_tokens_mask
        body = probe.index(0) if 0 in probe else len(probe)
        self._before, self._after = body, list(reversed(probe)).index(0) if 0 in probe else 0
        self._around = self._before + self._after
        self.length_max = length_max
        self.tokens_max = length_max - self._around
        """Of a text."""

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        if all(len(text) <= CHARACTERS_AT_ONCE_MAX for text in texts):
            return [self._cut(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        return [self._cut(self._joined(text)) for text in texts]

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else 0

    def ends(self, text: str) -> list[int]:
        """Where each token ends, in characters, ascending."""
        try:
            parts = _parts(text)
            encodings = self._tokenizer.encode_batch([part for _, part in parts], add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # halves of characters, which have no place in UTF-8
            return self.ends(text.encode("utf-8", "replace").decode())
        ends: list[int] = []
        for (start, _), encoding in zip(parts, encodings, strict=True):
            ends.extend(start + end for _, end in encoding.offsets)
        return ends

    def _joined(self, text: str) -> list[int]:
        parts = [part for _, part in _parts(text)]
        encodings = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(parts)]
        body = [identifier for ids in encodings for identifier in ids[self._before : len(ids) - self._after]]
        first, last = encodings[0][: self._before], encodings[0][len(encodings[0]) - self._after :]
        return [*first, *body, *last]

    def _cut(self, ids: list[int]) -> Tokens:
        count = len(ids) - self._around
        if count <= self.tokens_max:
            return Tokens(ids, count, 0)
        kept = ids[: self.length_max - self._after] + ids[len(ids) - self._after :]
        return Tokens(kept, count, count - self.tokens_max)


def load_tokenizer(path: Path) -> Any:
    """A tokenizer.json. Raises ValueError for what is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{path} is no tokenizer: {error}") from error


def ends_of(tokenizer: TextTokenizer | None, text: str) -> list[int]:
    """By words and signs where a model has no tokenizer of this kind."""
    return word_ends(text) if tokenizer is None else tokenizer.ends(text)


def _parts(text: str) -> list[tuple[int, str]]:
    """Start and content; each part but the last ends before a space, where there is one in its last tenth."""
    parts, start = [], 0
    while len(text) - start > CHARACTERS_AT_ONCE_MAX:
        end = text.rfind(" ", start + CHARACTERS_AT_ONCE_MAX * 9 // 10, start + CHARACTERS_AT_ONCE_MAX)
        end = end if end > start else start + CHARACTERS_AT_ONCE_MAX
        parts.append((start, text[start:end]))
        start = end
    parts.append((start, text[start:]))
    return parts
