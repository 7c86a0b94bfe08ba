"""New texts as live changes: one plane after another gets a model of its own, each in a transaction."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.demo.data import PLANES, read_rows

SEED = 20130101
_WORDS = 3


@dataclass(frozen=True, slots=True)
class Renaming:
    """`marker` is a word of `model` that stands in no other text; `text` is that of the plane's bundle in the context
    `aircraft`."""

    tailnum: str
    marker: str
    model: str
    text: str


def renamings(count: int) -> list[Renaming]:
    """Of planes in turn, each as often as it takes; the same for the same count."""
    names = [name for name, _ in PLANES.columns]
    planes = [dict(zip(names, values, strict=True)) for values in read_rows(PLANES)]
    chance = random.Random(SEED)
    chance.shuffle(planes)
    return [_renaming(planes[number % len(planes)], chance) for number in range(count)]


def _renaming(plane: dict[str, str | None], chance: random.Random) -> Renaming:
    marker = "".join(chance.choice("bcdfghjklmnpqrstvwxz") + chance.choice("aeiou") for _ in range(_WORDS * 2))
    model = f"{plane['model']} {marker}"
    built = f", built in {plane['year']}" if plane["year"] else ""
    text = (
        f"{plane['manufacturer']} {model}, {plane['type']} with {plane['engines']} engines ({plane['engine']}) and "
        f"{plane['seats']} seats{built}."
    )
    return Renaming(str(plane["tailnum"]), marker, model, text)


async def rename(
    dsn: str, changes: Sequence[Renaming], rate: float, committed: Callable[[Renaming, int], None]
) -> float:
    """At `rate` changes per second; how many seconds it took. `committed(change, time_ns)`: the client has the answer
    to its commit."""
    import asyncpg

    connection: Any = await asyncpg.connect(dsn)
    started = time.monotonic()
    try:
        for number, change in enumerate(changes):
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            await connection.execute("UPDATE planes SET model = $1 WHERE tailnum = $2", change.model, change.tailnum)
            committed(change, time.time_ns())
    finally:
        await connection.close()
    return time.monotonic() - started
