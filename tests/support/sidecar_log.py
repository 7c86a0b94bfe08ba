"""What the Cassandra sidecar logs of its deliveries, for scripts of what it does, and jars that would log it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from connectors.cassandra.deliveries import TOLD_BY, Deliveries

BEGUN = (
    "2026-11-25 05:00:00,000 TRACE RecordAccumulator [Producer clientId=producer-1] Allocating a new 16384 byte "
    "message buffer for topic {} partition {} with remaining timeout 60000ms"
)
ARRIVED = "2026-11-25 05:00:00,001 TRACE ProducerBatch Successfully produced messages to {}-{} with base offset 7."
FAILED = "2026-11-25 05:00:00,001 TRACE ProducerBatch Failed to produce messages to {}-{} with base offset -1."
ENDED = "2026-11-25 05:00:00,001 INFO  QueueProcessor Encountered EOF event for {}.log ..."


def note(deliveries: Deliveries, *lines: tuple[str, str, int]) -> None:
    """(text, topic, partition) of each."""
    for text, topic, partition in lines:
        assert deliveries.note(text.format(topic, partition))


def note_end(deliveries: Deliveries, segment: str) -> None:
    """The queue is done with it; it is not a line of the producer, which nobody keeps."""
    assert not deliveries.note(ENDED.format(segment))


def write_jar(path: Path, **changed: bytes) -> Path:
    """A jar with nothing but the words that are looked for; `changed` by the name of a class."""
    with zipfile.ZipFile(path, "w") as jar:
        for name, words in TOLD_BY.items():
            jar.writestr(f"{name.replace('.', '/')}.class", changed.get(name.rpartition(".")[2], words))
    return path
