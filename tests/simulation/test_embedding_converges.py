"""Seeded worlds of an embedding space: whatever happened on the way, topics, Redis and index hold the right texts."""

from __future__ import annotations

import pytest

from tests.simulation.embedding import EmbeddingSimulation

SEEDS = 300
PER_TEST = 50


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_a_space_converges_after_faults(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        wrong = EmbeddingSimulation(seed).run()
        assert not wrong, f"seed {seed}:\n" + "\n".join(wrong[:5])
