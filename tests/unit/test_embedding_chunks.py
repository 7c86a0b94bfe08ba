"""How long texts are cut: without a gap, with the overlap that was asked for, at places that a person would take."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.embedding.chunks import cut_text
from pipeline.embedding.vectors import word_ends
from schemas.context import Chunks
from schemas.vectors import Chunk

WORDS = st.sampled_from(
    ["a", "two", "words,", "end.", "¿Qué?", "日本語", "。", "\n", "\n\n", "\U0001f9d1\u200d\U0001f680", "  ", "x" * 30]
)
TEXTS = st.lists(WORDS, max_size=200).map(" ".join)
RULES = st.builds(
    lambda size, part, most: Chunks(tokens_max=size, overlap_tokens=min(part, size // 2), chunks_max=most),
    st.integers(8, 40),
    st.integers(0, 20),
    st.integers(1, 60),
)


def tokens_in(ends: list[int], chunk: Chunk) -> int:
    """How many end in the piece."""
    return bisect_right(ends, chunk.end) - bisect_right(ends, chunk.start)


@given(TEXTS, RULES, st.integers(1, 64))
@example("word " * 100, Chunks(tokens_max=8, overlap_tokens=4, chunks_max=60), 64)
@example("", Chunks(), 64)
def test_pieces_cover_the_text_within_their_bounds(text: str, rule: Chunks, tokens_max: int) -> None:
    ends = word_ends(text)
    cut = cut_text(text, ends, rule, tokens_max)
    size = min(rule.tokens_max, tokens_max)
    assert 1 <= len(cut.chunks) <= rule.chunks_max
    first, last = cut.chunks[0], cut.chunks[-1]
    assert text[: first.start].strip() == ""
    for before, after in zip(cut.chunks, cut.chunks[1:], strict=False):
        assert before.start < after.start and before.end < after.end, "each moves on"
        assert after.start <= before.end or text[before.end : after.start].isspace(), "no gap"
    for chunk in cut.chunks:
        assert 0 <= chunk.start <= chunk.end <= len(text)
        assert tokens_in(ends, chunk) <= size
    assert cut.tokens_left == len(ends) - bisect_right(ends, last.end)
    if cut.tokens_left:
        assert len(cut.chunks) == rule.chunks_max
    else:
        assert last.end == len(text)


@given(st.integers(1, 400), RULES)
def test_each_piece_begins_so_many_tokens_before_the_end_of_the_one_before(words: int, rule: Chunks) -> None:
    text = "word " * words
    ends = word_ends(text)
    cut = cut_text(text, ends, rule, 8192)
    for before, after in zip(cut.chunks, cut.chunks[1:], strict=False):
        shared = bisect_right(ends, before.end) - bisect_right(ends, after.start)
        assert shared == rule.overlap_tokens


def test_a_short_text_is_one_piece() -> None:
    assert cut_text("one two", word_ends("one two"), Chunks(), 256).chunks == [Chunk(0, 7)]
    assert cut_text("", [], Chunks(), 256).chunks == [Chunk(0, 0)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a b c d e f\ng h. i j k", "a b c d e f\n"),
        ("a b c d e f. g h i j k", "a b c d e f. "),
        ("a b c d e f g h i j k", "a b c d e f g"),
        ("x" * 3 + "日" * 3, "xxx日日日"),
    ],
)
def test_a_line_goes_before_a_sentence_and_that_before_a_word(text: str, first: str) -> None:
    cut = cut_text(text, word_ends(text), Chunks(tokens_max=8, overlap_tokens=0), 256)
    assert text[cut.chunks[0].start : cut.chunks[0].end] == first


def test_a_model_that_takes_less_than_the_rule_decides() -> None:
    text = "word " * 50
    cut = cut_text(text, word_ends(text), Chunks(tokens_max=40, overlap_tokens=20), 10)
    assert max(tokens_in(word_ends(text), chunk) for chunk in cut.chunks) <= 10


@given(TEXTS.filter(lambda text: len(text) > 1))
def test_tokens_smaller_than_characters_are_cut_between_characters(text: str) -> None:
    """As byte-level tokenizers have them: several tokens may end at one character."""
    ends = sorted([*range(1, len(text) + 1), *range(1, len(text) + 1)])
    cut = cut_text(text, ends, Chunks(tokens_max=8, overlap_tokens=2, chunks_max=1000), 256)
    covered = set()
    for before, after in zip([Chunk(-1, 0), *cut.chunks], cut.chunks, strict=False):
        assert after.end > before.end
        covered.update(range(after.start, after.end))
    left_out = {place for place in range(cut.chunks[-1].end) if not text[place].isspace()} - covered
    assert not left_out and (cut.chunks[-1].end == len(text) or cut.tokens_left)
