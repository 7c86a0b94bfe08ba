"""Files of labelled queries: what is read from them, and every mistake with its line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.ops.space_evaluation import read_evaluation


def test_grades_and_lists_are_read(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_text(
        '{"query": "wide-body planes", "relevant": {"N1": 3, "N2": 1, "N3": 0}}\n\n'
        '{"query": "Zürich", "relevant": ["a|b"]}\n'
    )
    found = read_evaluation(file, "evals/queries.jsonl")
    assert [query.relevant for query in found.queries] == [{"N1": 3.0, "N2": 1.0}, {"a|b": 1.0}]
    assert (found.name, found.labels) == ("evals/queries.jsonl", 3)
    assert found.digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    lines = [
        '{"query": "fine", "relevant": ["a"]}',
        '{"query": "half", "relevant": ["a"]',
        "[1]",
        '{"query": "  ", "relevant": [], "grade": 3}',
        '{"query": "a", "relevant": {"k": 3, "k": 1}}',
        '{"query": "b", "relevant": {"k": -1}}',
        '{"query": "c", "relevant": {"k": 0}}',
        '{"query": "d"}',
        '{"query": "fine", "relevant": ["b"]}',
        '{"query": "e", "relevant": ["a", "a"]}',
        '{"query": "f", "relevant": {"k": NaN}}',
    ]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as raised:
        read_evaluation(file)
    told = [mistake.removeprefix(f"{file}:") for mistake in raised.value.mistakes]
    assert [line.split(":")[0] for line in told] == ["2", "3", "4", "4", "4", "5", "6", "7", "8", "9", "10", "11"]
    assert "unknown key 'grade'" in "".join(told) and "'k' stands there twice" in "".join(told)
    assert "the same query stands in line 1" in told[9]


@pytest.mark.parametrize(("content", "words"), [(b"\n", "no query in it"), (b"\xff", "not UTF-8")])
def test_a_file_without_queries_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_evaluation(file)
    with pytest.raises(ConfigError, match="can't be read"):
        read_evaluation(tmp_path / "none.jsonl")
