"""What the sidecar's producer has handed over and what Kafka has of it, counted from the producer's own log.

Debezium's connector sends and does not wait, and a record may overtake another one that goes to another partition. Its
producer says when it begins a batch and when Kafka has it; batches of a partition arrive in order. So what was begun at
some moment is in Kafka when as many batches of each partition have arrived as were begun then. What a segment gave was
begun before the connector tells its end, in the same thread; that line comes before it moves the segment aside. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

LOGGERS = (
    "org.apache.kafka.clients.producer.internals.RecordAccumulator",
    "org.apache.kafka.clients.producer.internals.ProducerBatch",
)
"""Of kafka-clients 4.1, which both jars bring."""
TOLD_BY = {
    LOGGERS[0]: b"Allocating a new {} byte message buffer for topic {} partition {} ",
    LOGGERS[1]: b"Successfully produced messages to {} with base offset {}",
    "io.debezium.connector.cassandra.QueueProcessor": b"Encountered EOF event for {} ",
}
"""Classes of a jar, and the words in each without which nothing could be counted."""
_LEVEL = " TRACE "
_BEGUN = re.compile(r"Allocating a new \d+ byte message buffer for topic (\S+) partition (\d+) ")
_ARRIVED = re.compile(r"Successfully produced messages to (\S+)-(\d+) with base offset ")
_ENDED = re.compile(r"Encountered EOF event for (CommitLog-[\d-]+)\.log")

Partition = tuple[str, int]
Mark = Mapping[Partition, int]


class Deliveries:
    """Of one life of the sidecar: `forget` when it begins anew, `note` each line of its log.

    The questions may be asked from another thread than the one that notes.
    """

    def __init__(self) -> None:
        self._begun: Counter[Partition] = Counter()
        self._arrived: Counter[Partition] = Counter()
        self._ends: dict[str, Mark] = {}

    def forget(self) -> None:
        self._begun.clear()
        self._arrived.clear()
        self._ends.clear()

    def note(self, line: str) -> bool:
        """Whether the line is one of the producer's, which nobody else wants to read."""
        if _LEVEL not in line:
            if ended := _ENDED.search(line):
                self._ends[ended[1]] = self.mark()
            return False
        if begun := _BEGUN.search(line):
            self._begun[begun[1], int(begun[2])] += 1
        elif arrived := _ARRIVED.search(line):
            self._arrived[arrived[1], int(arrived[2])] += 1
        return True

    def mark(self) -> Mark:
        """Everything that was begun until now."""
        return dict(self._begun)

    def reached(self, mark: Mark, topic: str) -> bool:
        """Whether Kafka has all of it. False for a log that does not tell batches one by one as it should: none of
        `topic`, to which something has been sent, or more that arrived than were begun."""
        return any(name == topic for name, _ in dict(self._arrived)) and self._have_arrived(mark)

    def has_segment(self, name: str) -> bool:
        """Whether Kafka has all that came out of a segment. False before its end was told, too."""
        mark = self._ends.get(name)
        return mark is not None and self._have_arrived(mark)

    def drop_segments(self, names: Iterable[str]) -> None:
        """Which nobody will ask for again."""
        for name in names:
            self._ends.pop(name, None)

    def _have_arrived(self, mark: Mark) -> bool:
        arrived, begun = dict(self._arrived), dict(self._begun)
        if any(count > begun.get(partition, 0) for partition, count in arrived.items()):
            return False
        return all(arrived.get(partition, 0) >= count for partition, count in mark.items())
