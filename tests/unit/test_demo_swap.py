"""The swap's verdict, and its commits: one section of a context's file changes, the rest stays sign by sign."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.demo.harness import CONTEXTS, Harness
from deploy.demo.rollout import commit
from deploy.demo.swap import WORSE, SwapDemo, SwapSettings
from deploy.demo.traffic import latency_figures
from schemas.context_file import load_context

GOOD = {
    "lookups": 10, "searches": 10, "errors": 0, "mixed_space": 0,
    "promoted": True, "returned": True, "worse_refused": True,
}  # fmt: skip
BAD = [
    ("lookups", 0), ("searches", 0), ("errors", 1), ("mixed_space", 1),
    ("promoted", False), ("returned", False), ("worse_refused", False),
]  # fmt: skip


def test_all_of_it_must_be_as_it_should(tmp_path: Path) -> None:
    demo = SwapDemo(SwapSettings(tmp_path))
    assert not demo.as_it_should_be, "nothing has happened yet"
    demo.result |= GOOD
    assert demo.as_it_should_be


@pytest.mark.parametrize(("name", "value"), BAD)
def test_one_thing_that_is_not_as_it_should_is_enough(tmp_path: Path, name: str, value: object) -> None:
    demo = SwapDemo(SwapSettings(tmp_path))
    demo.result |= {**GOOD, name: value}
    assert not demo.as_it_should_be


def test_a_commit_changes_the_embedding_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "contexts"
    folder.mkdir()
    shutil.copy(CONTEXTS / "plane.yaml", folder)
    path, original = folder / "plane.yaml", (CONTEXTS / "plane.yaml").read_text()
    before = commit(Harness(tmp_path), "plane", WORSE)
    changed = path.read_text()
    assert changed[: changed.index("\nembedding:")] == original[: original.index("\nembedding:")]
    assert changed[changed.index("\nserving:") :] == original[original.index("\nserving:") :]
    worse = load_context(path)
    assert worse.embedding is not None and worse.embedding.engine == "hash"
    assert worse.embedding.filters == before["filters"], "what the commit does not name stays"
    commit(Harness(tmp_path), "plane", before)
    assert load_context(path) == load_context(CONTEXTS / "plane.yaml")


def test_latencies_are_of_answers_that_came() -> None:
    assert latency_figures({"search": [], "lookup": [1.0, 2.0, 3.0]}) == {
        "lookup": {"p50": 2.0, "p99": 3.0, "p99_9": 3.0, "max": 3.0}
    }
