"""Compares what the stores hold with what the oracle and a rebuild from the final tables say."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.bundle import empty_bytes
from pipeline.plan import Plan
from pipeline.stores.memory import MemoryBundles
from schemas.bundle import ROOT_UNIT, Stored, UnitKey
from schemas.context import ContextSpec
from tests.simulation import oracle
from tests.simulation.world import Memory


def differences(spec: ContextSpec, plan: Plan, tables: oracle.Tables, memory: Memory) -> list[str]:
    """One line per bundle that differs from the oracle, is missing, or should not be there."""
    expected = oracle.bundles(spec, tables)
    found = {
        key.key: composed(plan, memory.bundles, stored)
        for key, stored in memory.bundles.values.items()
        if key.unit == ROOT_UNIT and not stored.deleted
    }
    lines = []
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            lines.append(f"bundle {key} is missing")
        elif key not in expected:
            lines.append(f"bundle {key} should not be there")
        else:
            value = msgspec.json.decode(found[key])
            if value != expected[key] or list(value) != list(expected[key]):
                lines.append(f"bundle {key}:\n  is     {value}\n  should {expected[key]}")
    return lines


def composed(plan: Plan, bundles: MemoryBundles, stored: Stored) -> bytes:
    """The answer of a lookup, naively: every fragment put into its place."""
    assert stored.meta is not None
    parts: list[bytes] = []
    position = 0
    for reference in stored.meta.fragments:
        parts.append(stored.body[position : reference.offset])
        position = reference.offset
        fragment: Any = (
            bundles.values.get(UnitKey(reference.unit, reference.key)) if reference.key is not None else None
        )
        empty = fragment is None or fragment.deleted
        parts.append(empty_bytes(plan.units[reference.unit]) if empty else fragment.body)
    parts.append(stored.body[position:])
    return b"".join(parts)
