"""500 seeded worlds: whatever happened on the way, the stores equal what the tables say; both compositions agree."""

from __future__ import annotations

import pytest

from tests.simulation.compare import composed
from tests.simulation.run import Simulation

SEEDS = 500
PER_TEST = 50


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_converges_after_faults(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        wrong = Simulation(seed).run()
        assert not wrong, f"seed {seed} (./run simulate --seed {seed}):\n" + "\n".join(wrong[:5])


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_wide_column_tables_converge_after_faults(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        wrong = Simulation(seed, wide=True).run()
        assert not wrong, f"seed {seed} (./run simulate --wide --seed {seed}):\n" + "\n".join(wrong[:5])


@pytest.mark.parametrize("first", range(0, 100, PER_TEST))
def test_copies_and_links_answer_byte_for_byte_alike(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        answers = []
        for compose in ("copy", "link"):
            simulation = Simulation(seed, compose)
            wrong = simulation.run()
            assert not wrong, f"seed {seed}, {compose}:\n" + "\n".join(wrong[:5])
            bundles = simulation.memory.bundles
            live = {key.key: stored for key, stored in bundles.values.items() if not key.unit and not stored.deleted}
            answers.append({key: composed(simulation.plan, bundles, stored) for key, stored in live.items()})
        assert answers[0] == answers[1], f"seed {seed}: copy and link differ"
