"""What the tests of the near cache share: bundles with one fragment each, and a watcher of positions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from pipeline.stores.store import AppliedPosition, Partition
from schemas.bundle import ROOT_UNIT, FragmentReference, Meta, Stored, UnitKey

PARTITION: Partition = ("changes", 0)
ROOTS = [UnitKey(ROOT_UNIT, f"flight {number}") for number in range(12)]
PLANES = [UnitKey("plane", f"N{number}") for number in range(3)]


def stored(name: UnitKey, counter: int) -> Stored:
    planes = [] if name.unit else [PLANES[ROOTS.index(name) % len(PLANES)]]
    references = [FragmentReference(1, plane.unit, plane.key) for plane in planes]
    return Stored(counter, Meta(f"{counter:032x}", 1, fragments=references), b"{%d}" % counter)


class Label:
    """What the tracking's observers are told: up to which position all is in the near cache."""

    def __init__(self) -> None:
        self.covered = self.begun = 0
        self._told = asyncio.Event()

    async def told(self) -> None:
        """Once more from now on."""
        self._told.clear()
        async with asyncio.timeout(30):
            await self._told.wait()

    def begin(self) -> int:
        self.begun += 1
        return self.begun

    def observe(self, began: int, positions: Mapping[Partition, AppliedPosition]) -> None:
        self.covered = positions[PARTITION].offset if PARTITION in positions else 0
        self._told.set()
