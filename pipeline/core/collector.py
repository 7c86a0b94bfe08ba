"""Python's collector of cycles in processes that run for weeks: a full pass stops everything, for a tenth of a second
where it looks at a hundred thousand objects of imports once more."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_EVERY_S = 0.005
YOUNG_MIN = 300
OLD_AFTER_S = 1.0
GROWN_MAX = 1_000_000


def settle(young_max: int) -> None:
    """Call it when everything is imported and opened: what lives now is never looked at again.

    `young_max`: so many new objects may pile up before the collector looks for cycles among them. A pass over 10,000
    takes about a millisecond.
    """
    _freeze()
    gc.set_threshold(young_max, 20, 100)


@contextmanager
def collecting_often() -> Iterator[None]:
    """As `settle`, for an event loop whose answers have a few milliseconds: small passes over what is new, and what has
    lived for a second is not looked at again.

    The collector's own passes come when thousands of objects have piled up, and stop everything for 3 to 20 ms. Cycles
    that become garbage later stay until a million objects more are alive, or seem so; then one full pass finds them.
    """
    _freeze()
    gc.disable()
    task = asyncio.get_running_loop().create_task(_collect(), name="collector of cycles")
    try:
        yield
    finally:
        task.cancel()
        gc.enable()


async def _collect() -> None:
    grown, young_since = 0, asyncio.get_running_loop().time()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        new = gc.get_count()[0]
        if new < YOUNG_MIN:
            continue
        grown += new - gc.collect(0)
        now_s = asyncio.get_running_loop().time()
        if grown > GROWN_MAX:
            gc.unfreeze()
            gc.collect()
            grown = 0
        elif now_s - young_since < OLD_AFTER_S:
            continue
        gc.freeze()
        young_since = now_s


def _freeze() -> None:
    gc.collect()  # what is garbage now would else stay for ever
    gc.freeze()
