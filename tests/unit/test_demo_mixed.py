"""That the demo's count of mixed answers can fail: each way in which an answer may be of two spaces is found."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.demo.mixed import MixedAnswers

BUNDLE = {"maker": "Boeing", "model": "767"}
OLD, NEW = "old", "new"
TEMPLATES = {OLD: "{{ maker }} {{ model }}", NEW: "a {{ model }} made by {{ maker }}"}
TEXTS = {OLD: "Boeing 767", NEW: "a 767 made by Boeing"}


def hit(text: str | None, cosine: float | None = 0.5, chunk: int | None = 0, moved_on: bool = False) -> dict[str, Any]:
    passage = {"start": 0, "end": len(text or ""), "chunk": chunk, "text": text}
    return {
        "key": "N1", "cosine": cosine, "passage": passage, "moved_on": moved_on, "answer": {"bundle": BUNDLE},
    }  # fmt: skip


def answer(space: str, *hits: dict[str, Any]) -> dict[str, Any]:
    return {"space": space, "hits": list(hits)}


@pytest.fixture
def answers() -> MixedAnswers:
    made = MixedAnswers()
    for space, template in TEMPLATES.items():
        made.know(space, template)
    return made


def cosines(old: float, new: float) -> dict[str, Any]:
    return {OLD: lambda question, text: old, NEW: lambda question, text: new}


def test_answers_of_one_space_each_are_not_mixed(answers: MixedAnswers) -> None:
    answers.look("jet", answer(OLD, hit(TEXTS[OLD], 0.5)))
    answers.look("jet", answer(NEW, hit(TEXTS[NEW], 0.7), hit(TEXTS[NEW], 0.7)))
    answers.look(None, answer(NEW, hit(TEXTS[NEW], 0.9)))
    answers.finish()
    assert answers.count_wrong_scores(cosines(0.5, 0.7)) == 2
    assert (answers.mixed, answers.answers, answers.hits) == (0, 3, 4)
    assert answers.by_space == {OLD: 1, NEW: 2}


def test_a_text_of_another_space_is_mixed(answers: MixedAnswers) -> None:
    answers.look("jet", answer(NEW, hit(TEXTS[NEW]), hit(TEXTS[OLD])))
    assert answers.mixed == 1
    assert "N1 was found by 'Boeing 767', but its text there is 'a 767 made by Boeing'" in answers.examples[0]


def test_an_answer_with_two_wrong_hits_is_one_mixed_answer(answers: MixedAnswers) -> None:
    answers.look("jet", answer(NEW, hit(TEXTS[OLD]), hit(TEXTS[OLD])))
    assert answers.mixed == 1


def test_a_bundle_that_the_text_was_not_made_from_is_mixed(answers: MixedAnswers) -> None:
    wrong = hit(TEXTS[OLD])
    wrong["answer"]["bundle"] = {**BUNDLE, "model": "747"}
    answers.look("jet", answer(OLD, wrong))
    assert answers.mixed == 1


def test_a_hit_that_says_that_it_moved_on_is_counted_apart(answers: MixedAnswers) -> None:
    answers.look("jet", answer(NEW, hit(TEXTS[OLD], moved_on=True), hit(None)))
    assert (answers.mixed, answers.moved_on) == (0, 2)


def test_a_score_of_another_space_is_mixed_as_often_as_it_was_answered(answers: MixedAnswers) -> None:
    for _ in range(3):
        answers.look("jet", answer(NEW, hit(TEXTS[NEW], 0.5)))
    answers.look("jet", answer(NEW, hit(TEXTS[NEW], 0.7)))
    assert answers.count_wrong_scores(cosines(0.5, 0.7)) == 2
    assert answers.mixed == 3
    assert "cosine 0.5000 instead of 0.7000" in answers.examples[0]


def test_words_alone_have_no_score_to_check(answers: MixedAnswers) -> None:
    answers.look("jet", answer(NEW, hit(TEXTS[NEW], None), hit(TEXTS[NEW], 0.1, chunk=None)))
    assert answers.count_wrong_scores({}) == 0


def test_a_space_that_becomes_known_later_is_looked_at_then(answers: MixedAnswers) -> None:
    answers.look("jet", answer("third", hit(TEXTS[OLD])))
    assert answers.mixed == 0
    answers.know("third", "{{ model }}")
    assert answers.mixed == 1


def test_a_space_that_nobody_knows_is_mixed(answers: MixedAnswers) -> None:
    answers.look("jet", answer("unheard", hit(TEXTS[OLD])))
    answers.look("jet", answer("unheard"))
    answers.finish()
    assert answers.mixed == 2
    assert answers.examples == ["2 answers name the unknown space unheard"]
