"""Passes over garbage in a server: small ones, cycles go, what lives on is left alone, and all is as before then."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from pipeline.core import collector
from pipeline.core.collector import collecting_often


class Ring:
    """Only a pass over cycles finds it."""

    def __init__(self) -> None:
        self.itself = self


async def gone(ring: weakref.ref[Ring]) -> bool:
    async with asyncio.timeout(10):
        while ring() is not None:
            await asyncio.sleep(0.01)
            keep = [[number] for number in range(collector.YOUNG_MIN)]
            del keep[: collector.YOUNG_MIN // 2]
    return True


async def test_new_garbage_goes_soon_without_the_collectors_own_passes() -> None:
    with collecting_often():
        assert not gc.isenabled()
        kept = [[number] for number in range(2 * collector.YOUNG_MIN)]
        ring = weakref.ref(Ring())
        assert await gone(ring) and len(kept)
    assert gc.isenabled()
    gc.unfreeze()


async def test_what_became_garbage_late_goes_when_much_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "OLD_AFTER_S", 0.0)
    monkeypatch.setattr(collector, "GROWN_MAX", 20 * collector.YOUNG_MIN)
    with collecting_often():
        old = Ring()
        ring = weakref.ref(old)
        kept = [[number] for number in range(2 * collector.YOUNG_MIN)]
        await asyncio.sleep(5 * collector.LOOK_EVERY_S)
        assert old not in gc.get_objects(), "it is not looked at any more"
        del old
        while ring() is not None:
            kept += [[number] for number in range(2 * collector.YOUNG_MIN)]
            await asyncio.sleep(2 * collector.LOOK_EVERY_S)
            assert len(kept) < 1000 * collector.YOUNG_MIN
    gc.unfreeze()
