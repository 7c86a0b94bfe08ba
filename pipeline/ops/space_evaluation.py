"""The labelled queries by which one embedding space of a context is judged against another: schemas.context.Gate."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError

QUERY_CHARACTERS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    """`relevant`: bundle key → grade, above 0; what is not named is not relevant."""

    query: str
    relevant: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`name` is the file as the spec names it, `digest` the SHA-256 of its bytes, hex."""

    name: str
    digest: str
    queries: list[LabelledQuery]

    @property
    def labels(self) -> int:
        return sum(len(query.relevant) for query in self.queries)


def read_evaluation(path: Path, name: str = "") -> Evaluation:
    """Raises ConfigError with every mistake of the file, each with its line."""
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise ConfigError([f"{path}: the evaluation can't be read: {error.strerror}; mend embedding.gate"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: the evaluation is not UTF-8 text (byte {error.start})"]) from error
    mistakes: list[str] = []
    queries: dict[str, int] = {}
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        wrong, query = _read_line(line)
        if query is not None and queries.setdefault(query.query, number) != number:
            wrong.append(f"the same query stands in line {queries[query.query]}; keep one of the two")
        mistakes += [f"{path}:{number}: {one}" for one in wrong]
        if query is not None:
            found.append(query)
    if not mistakes and not found:
        mistakes.append(f'{path}: no query in it; write one per line: {{"query": "…", "relevant": ["KEY"]}}')
    if mistakes:
        raise ConfigError(mistakes)
    return Evaluation(name or path.name, hashlib.sha256(data).hexdigest(), found)


def _read_line(line: str) -> tuple[list[str], LabelledQuery | None]:
    """What is wrong with it, and the query unless it is broken."""
    repeated: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in found:
            if name in made:
                repeated.append(name)
            made[name] = value
        return made

    try:
        data = json.loads(line, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        return [f"no JSON object: {error}"], None
    if not isinstance(data, dict):
        return ['a line is one JSON object: {"query": "…", "relevant": ["KEY"]}'], None
    mistakes = [f"{name!r} stands there twice" for name in dict.fromkeys(repeated)]
    mistakes += [f"unknown key {name!r}; there are query and relevant" for name in data if name not in _KEYS]
    query, relevant = data.get("query"), data.get("relevant")
    if not isinstance(query, str) or not query.strip() or len(query) > QUERY_CHARACTERS_MAX:
        mistakes.append(f"'query' is a text of 1 to {QUERY_CHARACTERS_MAX:,} characters")
    mistakes += _wrong_labels(relevant)
    if mistakes:
        return mistakes, None
    assert isinstance(query, str)
    grades = relevant.items() if isinstance(relevant, dict) else ((key, 1) for key in relevant or ())
    return [], LabelledQuery(query, {key: float(grade) for key, grade in grades if grade > 0})


_KEYS = ("query", "relevant")


def _wrong_labels(relevant: Any) -> Iterator[str]:
    if isinstance(relevant, list):
        if not relevant or not all(isinstance(key, str) and key for key in relevant):
            yield "'relevant' is a list of bundle keys, each a text"
        elif len(set(relevant)) < len(relevant):
            yield "'relevant' names a key twice"
        return
    if not isinstance(relevant, dict):
        yield '\'relevant\' is missing; write ["KEY"], or {"KEY": 3} with grades'
        return
    for key, grade in relevant.items():
        if isinstance(grade, bool) or not isinstance(grade, int | float) or not math.isfinite(grade) or grade < 0:
            yield f"the grade of {key!r} is no number from 0 on"
            return
    if not any(grade > 0 for grade in relevant.values()):
        yield "'relevant' has no key with a grade above 0: every answer would be as good"
