"""Every benchmark runs small with the tests, so that none of them rots; figures are printed, never asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]


def _bench(tmp_path: Path, *arguments: str) -> dict[str, float]:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, 0o755)
    command = [sys.executable, "-m", "pipeline.cli", "bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    return dict(result)


def test_apply(tmp_path: Path) -> None:
    result = _bench(tmp_path, "apply", "--rows", "2000")
    assert result["events"] == 2000
    assert set(result) >= {"events_per_s", "rss_mib", "round_trips_per_batch", "writes_per_event"}
    assert result["events_per_s"] > 0
    assert 1 < result["round_trips_per_batch"] < 30
    assert 1 <= result["writes_per_event"] < 3


def test_freshness(tmp_path: Path) -> None:
    result = _bench(tmp_path, "freshness", "--rate", "100", "--changes", "200", "--rows", "1000", "--warm-up", "1")
    assert set(result) >= {"p50_ms", "p99_ms"}
    assert result["not_seen"] == 0
    assert result["timed"] > 50
