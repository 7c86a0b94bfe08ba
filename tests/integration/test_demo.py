"""The demo as a newcomer types it, small: one JSON object as the last line, all verified, nothing left behind; and the
swap of an embedding space under load, small, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.servers, pytest.mark.timeout(700)]


def test_the_demo_verifies_every_bundle_and_cleans_up(tmp_path: Path) -> None:
    result = typed(tmp_path, "--rows", "2000", "--live", "100")
    assert result["verified"] == 2000 + 100 + 1458 + 3322
    assert result["mismatches"] == 0
    assert result["backfilled"] == 2000
    assert result["lookups"] == {"flight": "fresh", "airport": "fresh"}
    assert result["events_per_s"] > 0
    assert 0 < result["freshness_ms"]["p50"] <= result["freshness_ms"]["p99"]
    assert result["search"]["mode"] == "hybrid"
    assert len(result["search"]["found"]) == 10
    assert result["search"]["right_with_filter"] >= 5, "wide-body planes from before 1990: most fly to the west coast"


def test_a_swap_under_load_has_no_error_and_no_mixed_answer(tmp_path: Path) -> None:
    result = typed(tmp_path, "--swap", "--rows", "1000", "--clients", "20")
    assert result["errors"] == 0
    assert result["mixed_space"] == 0
    assert result["promoted"] and result["returned"] and result["worse_refused"]
    assert result["lookups"] > 0 and result["searches"] > 0
    assert len(result["answers_by_space"]) == 2, "the refused space answered nobody"
    assert result["scores_checked"] > 0
    assert result["ndcg"]["new"] > result["ndcg"]["old"]


def typed(tmp_path: Path, *words: str) -> dict[str, Any]:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, 0o755)
    command = [sys.executable, "-m", "pipeline.cli", "demo", *words, "--json", "--dir", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=680, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 1, "the story goes to standard error"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo").exists(), "the demo leaves nothing behind"
    result: dict[str, Any] = json.loads(done.stdout)
    return result
