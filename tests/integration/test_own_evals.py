"""The project's own suite: made from the data as it is committed, the same however it is run, and it catches faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evals.generate.__main__ import MADE, files
from tests.evals.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "tests" / "evals"
CASES_MIN = 500

# Of each mutant: which cases are run in this test, and beginnings of ids that have to be among those that tell of it.
CAUGHT = {
    "join_dropped": ("replay/*-2013-01-30/*", "replay/"),
    "aggregate_off_by_one": ("replay/*-2013-01-30/*", "replay/"),
    "older_version_wins": ("replay/*/older-again", "replay/"),
    "redelivery_ignored": ("replay/films-*", "replay/films-"),
    "late_cell_wins": ("replay/sky-*", "replay/sky-"),
    "delete_resurrects": ("replay/*/no-resurrection", "replay/"),
    "stale_served_as_fresh": ("trace/stale/*", "trace/stale/"),
    "tenant_filter_gone": ("trace/not-theirs/*", "trace/not-theirs/"),
    "default_bundle_skipped": ("degraded", "degraded/store-down/"),
    "wrong_tie_break": ("retrieval/tie/*", "retrieval/tie/"),
    "other_endpoints_skipped": ("malformed", "malformed/first/error_500"),
    "rate_limit_ignored": ("degraded", "degraded/rate-limit-lies/"),
    "never_retried": ("malformed", "malformed/once/"),
    "deadline_ignored": ("latency", "latency/all-hang/"),
    "breaker_never_opens": ("degraded", "degraded/breaker-first/"),
    "validation_loosened": ("malformed", "malformed/first/two_values"),
    "citations_not_checked": ("output", "output/wrong-value/"),
    "stale_context_rebooks": ("trace/stale/*", "trace/stale/"),
}


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def eval_run(*options: str, hash_seed: str) -> dict[str, Any]:
    ran = run("pipeline.cli", "eval", "run", str(SUITE), "--json", *options, PYTHONHASHSEED=hash_seed)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_it_is_committed_as_it_is_made(tmp_path: Path) -> None:
    """In another process, whose sets and dicts have another order."""
    ran = run("tests.evals.generate", str(tmp_path), PYTHONHASHSEED="77")
    assert ran.returncode == 0, ran.stderr
    made = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert made.keys() == files().keys()
    assert {name for name, content in made.items() if (SUITE / name).read_bytes() != content} == set()
    committed = {str(path.relative_to(SUITE)) for part in MADE for path in (SUITE / part).glob("*.json*")}
    assert committed == made.keys()


def test_it_passes_and_is_the_same_in_another_order_and_number_of_processes() -> None:
    first = eval_run("--jobs", "2", hash_seed="1")
    second = eval_run("--jobs", "1", "--seed", "20261130", hash_seed="2")
    assert first["passed"] >= CASES_MIN
    assert (first["failed"], first["flipped"], first["missing"], first["verdict"]) == (0, [], [], "pass")
    assert first["digest"] == second["digest"]
    assert first["suite_digest"] == second["suite_digest"]


def test_every_mutant_has_a_line_here() -> None:
    assert CAUGHT.keys() == MUTANTS.keys()


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_gate_catches_the_mutant_and_names_the_cases(name: str) -> None:
    only, told = CAUGHT[name]
    ran = run("tests.evals.mutants", name, "--jobs", "0", "--only", only)
    assert ran.returncode == 1, ran.stdout[-2000:] + ran.stderr[-2000:]
    flipped = [line.partition(": ")[2] for line in ran.stdout.splitlines() if line.startswith("regressed: ")]
    assert any(one.startswith(told) for one in flipped), flipped
