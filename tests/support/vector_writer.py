"""A process that keeps a vector index in a folder and does nothing else, for tests that kill it:
`python -m tests.support.vector_writer FOLDER SEED`."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from pipeline.stores.spaces import Placed
from pipeline.stores.vectors import open_index
from tests.support.vector_logs import DIMENSION, FIELDS, SMALL, record, unit_rows

RECORDS = 4_000


def written_log(seed: int) -> list[Placed]:
    """What the process applies, from where its index stands."""
    chance = random.Random(seed)
    log: list[Placed] = []
    for offset in range(RECORDS):
        key = f"k{chance.randrange(120)}"
        found = None
        if chance.random() < 0.85:
            found = record(unit_rows(chance, 1 + offset % 2), offset, {"year": offset % 5}, f"t{offset}")
        log.append(Placed(0, offset, key, found))
    return log


def main(folder: Path, seed: int) -> None:
    index = open_index(folder, "s", DIMENSION, FIELDS, SMALL)
    for placed in written_log(seed)[index.positions().get(0, 0) :]:
        index.apply([placed])
        if placed.offset % 10 == 0:
            index.maintain()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
