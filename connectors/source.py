"""The first step of the path: what a connector must be able to do, so that the runtime can bring its changes to Kafka.

A source is an object with four methods; the runtime (connectors/runtime.py) owns everything else: retries, publishing,
backpressure, where to resume, metrics. Optional abilities are protocols of their own below.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from connectors.publisher import KafkaSettings
    from connectors.watching import Watching
    from pipeline.core.clock import Clock
    from schemas.context import ContextSpec
    from schemas.fan_out import FanOut

Position = dict[str, Any]
"""Where to resume: a JSON object that only its source understands. The runtime stores it and hands it back."""

EVERY_PARTITION = -1


class SourceRecord(msgspec.Struct, frozen=True, gc=False):
    """One record for Kafka. `partition` None: by key, as Kafka's default partitioner does; EVERY_PARTITION: a copy to
    each partition (heartbeats). `value` None is a tombstone. `smaller` says the same without what a large `value` tells
    beside it, for a topic that does not take that: a delete that is set aside would leave its row for ever.
    """

    topic: str
    key: bytes
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    smaller: bytes | None = None


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Records in source order. `position`, where there is one, is where to resume once all of them, and all of every
    earlier batch, are in Kafka; None in the middle of something that cannot be resumed (a transaction).
    """

    records: list[SourceRecord]
    position: Position | None
    bytes_total: int = 0
    commit_time_us: int = 0
    """Commit time of the newest change in it, microseconds since 1970; 0 when it holds none."""


class Source(Protocol):
    """A database whose changes go to Kafka.

    Call order: `open` once, then `read` again and again, `acknowledge` at any time in between, `close` once, also after
    an error. `read` is never called twice at once; `acknowledge` may run while `read` waits. After an error the object
    is closed and a new one made.

    Errors: Retryable (the server is away: the runtime closes, waits, opens a new one at the last stored position),
    PositionLost (there would be a gap: the runtime stops), Fatal (anything not understood), EnvironmentProblem (a
    person has to mend something). Any other exception is a bug and ends the process.
    """

    async def open(self, position: Position | None) -> None:
        """Connects and starts behind `position` (everything up to it is in Kafka), or from scratch for None.

        From scratch means a complete snapshot first, then every change after it, without a gap between them.
        Raises PositionLost when the server cannot continue exactly there; never starts elsewhere.
        """

    async def read(self) -> Batch:
        """Waits for at least one record or a position to move to. Bounded in bytes. Cancelled only before `close`.

        It must go on reading while nothing is acknowledged: how far ahead it may run is the runtime's decision.
        Its connection stays alive while nobody calls read.
        """

    async def acknowledge(self, position: Position) -> None:
        """Everything up to `position` is in Kafka and the position is stored: the server may forget what is before.

        Called only by the runtime, only after both, in order, at most a few times a second. Never blocks for long.
        """

    async def close(self) -> None:
        """Gives up connections, tasks and files; leaves slots and publications where they are."""


@runtime_checkable
class Topics(Protocol):
    """A source that knows its tables: the runtime creates their topics before the first record."""

    def table_topics(self) -> list[str]:
        """Topics of the captured tables, compacted, with the configured number of partitions."""

    def other_topics(self) -> list[str]:
        """Topics that are created with one partition and are not compacted: logical messages."""


@runtime_checkable
class KeepingAll(Protocol):
    """A source whose records tell parts of a row: an earlier one counts beside a later one of the same key, so that
    the topics of its tables must not be compacted."""

    def retention_ms(self) -> int:
        """How long these topics keep a record, -1 for ever."""


@runtime_checkable
class UsingKafka(Protocol):
    """A source beside which another program of its own writes to Kafka."""

    def use_kafka(self, kafka: KafkaSettings) -> None:
        """Called before `open`: where it is, and how our topics are made."""


class LagReport(msgspec.Struct, frozen=True):
    """How far behind: bytes of log that are not confirmed, bytes that the server retains for us, slot state."""

    unconfirmed_bytes: int
    retained_bytes: int
    state: str


@runtime_checkable
class Lag(Protocol):
    """A source that can say how far behind it is."""

    async def lag(self) -> LagReport:
        """Asks the server; raises Retryable when it is away."""


StoredPosition = Callable[[str], Awaitable[Position | None]]
"""The newest position that is stored under a name; None when none was ever stored. Raises Retryable or Fatal."""


@runtime_checkable
class Watched(Protocol):
    """A source whose server tells others than its connector, too, how it stands: what it keeps for us, how much more
    it can keep, who reads it. See connectors/watching.py."""

    def watch(self, stored: StoredPosition | None, clock: Clock) -> Watching:
        """A watch with connections of its own, whether this source is open or not; nothing is connected yet.

        `stored` tells how far it has been read; None: that can't be known. It may only read, with the rights of
        somebody who looks on.
        """


class Finding(msgspec.Struct, frozen=True):
    """One thing that `ctxpipe check` found. `mend` is the SQL or the command that mends it."""

    severity: str
    """ok, note, warning or unfit."""
    subject: str
    message: str
    mend: str = ""


@runtime_checkable
class Checking(Protocol):
    """A source that can be examined before it runs."""

    async def check(self) -> list[Finding]:
        """Examines server, grants, slot and tables without changing anything.

        Raises EnvironmentProblem when the server cannot be reached or refuses the login.
        """


class TableDescription(msgspec.Struct, frozen=True):
    """A table as the source has it: `columns` name → type name, `key` its primary key columns."""

    name: str
    columns: dict[str, str]
    key: list[str]


@runtime_checkable
class Discovering(Protocol):
    """A source that can list what could be captured."""

    async def discover(self) -> list[TableDescription]:
        """All tables that the login may read."""


@runtime_checkable
class Snapshotting(Protocol):
    """A source that can read a table again while it streams."""

    async def request_snapshot(self, table: str) -> None:
        """Asks the running connector of this source, in whatever process, to snapshot `table`. Returns at once."""


@runtime_checkable
class Resetting(Protocol):
    """A source that can begin anew: what `ctxpipe connect --reset` needs."""

    def reset_position(self) -> Position:
        """What is stored in place of the position: `open` then forgets what the server keeps for us, tells consumers
        to drop all rows and reads everything again."""


@runtime_checkable
class PositionChecking(Protocol):
    """A source that can tell beforehand whether it would go on at a position."""

    async def check_position(self, position: Position | None) -> list[Finding]:
        """As `open` would judge, without changing anything; None: none is stored. Raises Retryable or Fatal."""


@runtime_checkable
class Describing(Protocol):
    """A source that knows the columns of its tables, so that a context which names others is found out before."""

    async def describe(self, tables: Sequence[str]) -> dict[str, list[str] | None]:
        """Captured columns by table; None for a table that does not exist. Raises as `check`."""


@runtime_checkable
class MeasuringFanOut(Protocol):
    """A source that can count how many rows show a row of another table."""

    async def measure_fan_out(self, spec: ContextSpec) -> dict[str, FanOut]:
        """By the path of each section of the context that this source alone can answer. Raises as `check`."""


ShowProgress = Callable[[str, int, int], None]
"""Called with a table, its rows read so far and about how many there are."""


@runtime_checkable
class Progressing(Protocol):
    """A source whose snapshots are worth a progress bar."""

    def show_progress(self, show: ShowProgress) -> None:
        """Called before `open`."""
