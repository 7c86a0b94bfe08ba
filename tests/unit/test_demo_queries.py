"""The demo's labelled questions: from the rows, graded, and only those that somebody answers."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from deploy.demo.harness import CONTEXTS
from deploy.demo.labelled_queries import PlaneFacts, before, labels_of, of, to, wide, write_queries
from pipeline.ops.space_evaluation import read_evaluation
from pipeline.text import render_template


def plane(tailnum: str, year: int, model: str = "767-223", airline: str = "Delta", *regions: str) -> PlaneFacts:
    return PlaneFacts(
        tailnum, year, "BOEING", model, 2, "Turbo-fan", 255, False, airline, frozenset(regions), frozenset()
    )  # fmt: skip


def test_all_that_is_asked_for_gets_the_best_grade_and_all_but_the_last_a_lesser_one() -> None:
    facts = [
        plane("right", 1988, "767-223", "Delta", "the west coast"),
        plane("elsewhere", 1988, "767-223", "Delta", "Florida"),
        plane("new", 2001, "767-223", "Delta", "the west coast"),
        plane("narrow", 1988, "757-232", "Delta", "the west coast"),
        plane("unknown age", 0, "767-223", "Delta", "the west coast"),
    ]
    assert labels_of(facts, (wide, before(1990), to("the west coast"))) == {"right": 3, "elsewhere": 1}
    assert labels_of(facts, (wide, of("Alaska"))) == {}


def test_the_file_is_what_the_gate_reads(tmp_path: Path) -> None:
    count = write_queries(tmp_path / "queries.jsonl", 5_000)
    found = read_evaluation(tmp_path / "queries.jsonl")
    assert count == len(found.queries) >= 40
    assert all(query.relevant for query in found.queries)
    first = json.loads((tmp_path / "queries.jsonl").read_text().splitlines()[0])
    assert first["query"] == "wide-body planes built before 1990 that fly to the west coast"


def test_the_template_says_in_words_what_is_asked_for() -> None:
    spec = yaml.safe_load((CONTEXTS / "plane.yaml").read_text())
    bundle = {
        "tailnum": "N332AA", "year": 1987, "decade": 1980, "manufacturer": "BOEING", "model": "767-223",
        "body": "wide-body", "engines": 2, "engine": "Turbo-fan", "seats": 255,
        "destinations": [{"dest": "LAX", "flights": 9}, {"dest": "MIA", "flights": 1}, {"dest": "SFO", "flights": 2}],
        "farthest": {"airline": {"name": "American Airlines Inc."}},
    }  # fmt: skip
    assert render_template(spec["embedding"]["template"], bundle) == (
        "wide-body Boeing 767-223 of American Airlines, built before 1990, in the 1980s.\n"
        "Flies to the west coast (Los Angeles, San Francisco).\nFlies to Florida (Miami)."
    )
