"""Whether search answers are of one embedding space each: what a swap under load must never get wrong (promise 6).

An answer names its space. That is taken at its word and checked: every hit's text must be what that space's template
makes of the bundle beside it, and every score the cosine that the space's own engine gives to question and text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec

from pipeline.core.errors import Poison
from pipeline.text import render_template

EXAMPLES_MAX = 5
SCORE_TOLERANCE = 1e-3
"""Sums of 384 products in another order differ by less, other spaces' vectors by far more."""

Cosine = Callable[[str, str], float]
"""(question, text) → their cosine in one space."""


class Scored(msgspec.Struct, frozen=True):
    """A hit's score, to be computed again."""

    space: str
    question: str
    text: str
    cosine: float


@dataclass
class MixedAnswers:
    """`look` at every answer, `know` every space sooner or later, `finish` at the end; then read the counts.

    `moved_on`: hits that say of themselves that their bundle has another text now; there is nothing to compare.
    `scores`: how many answers showed each score, for `count_wrong_scores`.
    """

    answers: int = 0
    hits: int = 0
    moved_on: int = 0
    mixed: int = 0
    examples: list[str] = field(default_factory=list)
    by_space: dict[str, int] = field(default_factory=dict)
    scores: dict[Scored, int] = field(default_factory=dict)
    _templates: dict[str, str] = field(default_factory=dict)
    _unknown: dict[str, list[tuple[str | None, dict[str, Any]]]] = field(default_factory=dict)

    def know(self, space: str, template: str) -> None:
        """Answers of this space that came before are looked at now."""
        self._templates[space] = template
        for question, answer in self._unknown.pop(space, []):
            self._judge(question, answer)

    def look(self, question: str | None, answer: dict[str, Any]) -> None:
        """`answer` as the HTTP interface gives it, with bundles; `question` None where it was no text."""
        space = str(answer.get("space"))
        self.answers += 1
        self.hits += len(answer["hits"])
        self.by_space[space] = self.by_space.get(space, 0) + 1
        if space in self._templates:
            self._judge(question, answer)
        else:
            self._unknown.setdefault(space, []).append((question, answer))

    def finish(self) -> None:
        """A space that nobody ever heard of is a wrong one."""
        for space, answers in self._unknown.items():
            self._count(len(answers), f"{len(answers)} answers name the unknown space {space}")
        self._unknown.clear()

    def count_wrong_scores(
        self, cosines: Mapping[str, Cosine], advance: Callable[[int], None] = lambda count: None
    ) -> int:
        """Computes every score again by the cosines of its space; how many different ones there were."""
        for scored, times in self.scores.items():
            advance(1)
            found = cosines[scored.space](scored.question, scored.text)
            if abs(found - scored.cosine) > SCORE_TOLERANCE:
                told = f"{scored.cosine:.4f} instead of {found:.4f} for {scored.question!r} and {scored.text!r}"
                self._count(times, f"space {scored.space}: cosine {told}")
        return len(self.scores)

    def _judge(self, question: str | None, answer: dict[str, Any]) -> None:
        space = answer["space"]
        wrong = [found for found in (self._wrong(space, hit) for hit in answer["hits"]) if found]
        if wrong:
            self._count(1, f"space {space}: {wrong[0]}")
        elif question is not None:
            for scored in _scored(space, question, answer["hits"]):
                self.scores[scored] = self.scores.get(scored, 0) + 1

    def _wrong(self, space: str, hit: dict[str, Any]) -> str:
        passage, bundle = hit["passage"], hit["answer"]["bundle"]
        if hit["moved_on"] or passage is None or passage["text"] is None:
            self.moved_on += 1
            return ""
        expected = _text(self._templates[space], msgspec.json.encode(bundle))
        if passage["text"] == expected[passage["start"] : passage["end"]]:
            return ""
        return f"{hit['key']} was found by {passage['text']!r}, but its text there is {expected!r}"

    def _count(self, answers: int, told: str) -> None:
        self.mixed += answers
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(told)


def _scored(space: str, question: str, hits: Sequence[dict[str, Any]]) -> list[Scored]:
    """Of hits that were found by their vector, which is of exactly the text that is shown."""
    return [
        Scored(space, question, hit["passage"]["text"], hit["cosine"])
        for hit in hits
        if not hit["moved_on"]
        and hit["cosine"] is not None
        and (hit["passage"] or {}).get("chunk") is not None
        and hit["passage"]["text"] is not None
    ]


@lru_cache(20_000)
def _text(template: str, bundle: bytes) -> str:
    try:
        return render_template(template, msgspec.json.decode(bundle))
    except Poison as error:
        return f"({error})"
