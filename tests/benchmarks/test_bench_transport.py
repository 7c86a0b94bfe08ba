"""`ctxpipe bench transport`, small: it runs, and ours is far from stock Faust even so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.servers


def test_bench_transport_runs_and_reports(kafka_bootstrap: str, tmp_path: Path) -> None:
    report = tmp_path / "transport.json"
    command = [sys.executable, "-m", "pipeline.cli", "bench", "transport", "--json", "--rounds", "1"]
    command += ["--records", "12000", "--bootstrap-servers", kafka_bootstrap, "--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ours_vs_stock"] > 1
    assert figures["ours_vs_aiokafka"] > 0
    assert set(figures["records_per_s"]) == {"stock", "ours", "aiokafka"}
    assert json.loads(report.read_text()) == figures
