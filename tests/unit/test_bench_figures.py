"""What benchmarks count and how they add up; how quick anything is does not matter here."""

from __future__ import annotations

import pytest

from deploy.demo.data import PLANES
from deploy.demo.events import typed_rows
from deploy.demo.harness import CONTEXTS
from deploy.demo.renaming import renamings
from deploy.demo.search_freshness import Found
from deploy.demo.stage_times import StageTimes
from pipeline.commands._bench_found import STAGES, figures
from pipeline.commands._bench_saved import count_embeddings
from pipeline.text import render_template
from schemas.context_file import load_context


async def test_only_changes_of_the_text_are_embedded() -> None:
    counted = await count_embeddings(300)
    assert counted["bundles_written"] == counted["changes"] == 300
    assert counted["embeddings"] == counted["changes_of_text"] > 5
    assert counted["saved_share"] == pytest.approx(1 - counted["embeddings"] / 300, abs=1e-4)
    assert counted["embeddings_before"] == 3322, "every plane has a text, and each was embedded once"


def test_what_is_asked_for_is_the_text_of_the_bundle() -> None:
    template = load_context(CONTEXTS / "aircraft.yaml").embedded_template
    assert template is not None
    planes = {row["tailnum"]: row for row in typed_rows(PLANES)}
    changes = renamings(4_000)
    assert len({change.marker for change in changes}) == 4_000
    for change in changes:
        assert render_template(template, {**planes[change.tailnum], "model": change.model}) == change.text


def test_stages_add_up_to_the_whole() -> None:
    found = [Found("one", 10_000_000, 15_000_000, 60_000_000), Found("lost", 10_000_000, 9_000_000, None)]
    measured = figures(found, {"one": StageTimes(8_000, 12, 20, 25, 40)})
    assert (measured["timed"], measured["not_found"], measured["p50_ms"]) == (1, 1, 52.0)
    assert measured["from_the_client_ms"]["p50"] == 50.0, "the client's answer comes after the commit"
    assert [measured["stages_ms"][name]["p50"] for name in STAGES] == [4.0, 8.0, 5.0, 15.0, 20.0]
    assert measured["between_searches_p50_ms"] == 45.0
