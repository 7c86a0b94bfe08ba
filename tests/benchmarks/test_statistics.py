"""The simulation of the statistics, small: every scenario runs; the committed figures keep what is promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.statistics import Scenario, kept, overall, scenarios, simulate

REPORT = Path(__file__).with_name("statistics.json")
REPEATS = 10


@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: f"{scenario.part}: {scenario.name}")
def test_a_scenario_runs_and_gives_the_same_again(scenario: Scenario) -> None:
    found = simulate(scenario, 3, REPEATS)
    assert found == simulate(scenario, 3, REPEATS)
    low, high = found["share_95"]
    assert low <= found["share"] <= high


def test_the_committed_figures_are_of_these_scenarios_and_keep_what_is_promised() -> None:
    report = json.loads(REPORT.read_text())
    found = {(one["part"], one["scenario"]): one for one in report["scenarios"]}
    assert list(found) == [(scenario.part, scenario.name) for scenario in scenarios()]
    for part, name in found:
        one = found[part, name]
        assert one["repeats"] >= 1_000, name
        assert one["kept"] is kept(part, one["share"], tuple(one["share_95"]), one["aim"])
        assert one["kept"] or part in ("coverage", "limit"), name
    for part in ("fixed", "peeking"):
        assert overall(report["scenarios"], part) == report["overall"][part] <= 0.05
