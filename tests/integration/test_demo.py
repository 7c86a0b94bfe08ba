"""The demo as a newcomer types it, small: one JSON object as the last line, all verified, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]


def test_the_demo_verifies_every_bundle_and_cleans_up(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, 0o755)
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--rows", "2000", "--live", "100", "--json"]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path / "demo")], capture_output=True, text=True, timeout=380, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 1, "the story goes to standard error"
    result = json.loads(done.stdout)
    assert result["verified"] == 2000 + 100 + 1458
    assert result["mismatches"] == 0
    assert result["backfilled"] == 2000
    assert result["events_per_s"] > 0
    assert 0 < result["freshness_ms"]["p50"] <= result["freshness_ms"]["p99"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo").exists(), "the demo leaves nothing behind"
