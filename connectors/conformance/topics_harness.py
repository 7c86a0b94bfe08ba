"""What an author gives the topics kind of the suite: one table, and the deployment that brings its changes to Kafka.

Take this kind where records don't pass through an object of ours that the suite could hold: a process of its own beside
the source (Cassandra's change log), or a deployment that was there before us (Debezium). Nothing of the way to Kafka is
looked at: what lies in the topic is read back and judged through the decoder that workers use (schemas/envelope.py).

`TopicsHarness` is required. Of each ability in ABILITIES the harness has the methods, or says in `not_applicable` why
that can't be asked of it; the end of the run repeats the reason. A third way, to leave it open, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from connectors.conformance.harness import (
    Altering,
    Deleting,
    Duplicating,
    Late,
    Nulling,
    Rekeying,
    Restarting,
    Rows,
    Switching,
    Typed,
)
from connectors.registry import Plugin
from connectors.source import Finding
from schemas.event import ChangeEvent


class TopicsHarness(Protocol):
    """One table with a whole number `id` as key and a text `v`; further columns are the system's own matter.

    The system is up, the table empty, and its topic new, when a test gets its harness. One deployment may serve the
    harnesses of many tests, each with another table: starting one takes long.
    """

    plugin: Plugin
    not_applicable: Mapping[str, str]
    """Name of an ability → why it can't be asked of this deployment, one sentence. Name of a test, in the same way."""
    row_bytes_max: int
    """The largest row that is brought; below 10 MB with a reason, under this name in `not_applicable`."""

    def section(self) -> dict[str, Any]:
        """The section `sources.conformance` by which workers read these topics."""

    def topic(self) -> str:
        """Of the table."""

    def types(self) -> Mapping[str, str]:
        """Column → type, as an entity of a context has to declare them over these topics; {}: none."""

    async def start(self) -> None:
        """Has the deployment bring the table: all rows that it has, then every change. Called once by each test, also
        with rows there and while others write. Returns at once, or when it runs."""

    def alive(self) -> None:
        """Raises what ended the deployment, if anything did: nobody waits for a dead one."""

    async def write(self, rows: Mapping[int, str]) -> None:
        """Writes rows, id → v: creates what is not there, changes what is."""

    async def rows(self) -> Rows:
        """What the table holds now, without the deployment: record key as JSON → row of canonical values."""


@runtime_checkable
class Merging(Protocol):
    """For records that tell parts of rows (cells with write times): whole rows the suite puts together itself."""

    def merge(self, events: Sequence[ChangeEvent]) -> Rows:
        """The rows after all events, in whatever order, as workers merge them."""


@runtime_checkable
class Beginning(Protocol):
    """A deployment that tells of rows which were there before that they are a snapshot's."""

    def many(self) -> int:
        """How many rows make its snapshot take several steps."""


@runtime_checkable
class Killable(Protocol):
    async def kill(self, step: int) -> bool:
        """kill -9 of one process of the deployment after the other, step 0, 1, and so on; then starts again what does
        not come back by itself. False when there is no such process; then nothing has happened."""


@runtime_checkable
class Stoppable(Protocol):
    """A deployment that ctxpipe starts, so that ctxpipe has to end it."""

    async def stop(self) -> None:
        """Asks it to end as a person does, and returns when it has. A later `start` starts it again."""

    def processes(self) -> list[int]:
        """Those of its processes that are alive, those that its processes started included."""


@runtime_checkable
class Truncating(Protocol):
    async def truncate(self) -> None:
        """Empties the table at once."""


@runtime_checkable
class Beating(Protocol):
    """A deployment that says in every partition that time goes by."""

    def beat_within_s(self) -> float:
        """The longest time without a heartbeat."""


@runtime_checkable
class Examined(Protocol):
    async def check(self, section: dict[str, Any]) -> list[Finding]:
        """What `ctxpipe check` says of it with this section."""

    async def bad_sections(self) -> Mapping[str, dict[str, Any]]:
        """What is wrong → a section that is valid and does not fit the deployment."""


ABILITIES: Mapping[str, type[Any]] = {
    one.__name__: one
    for one in (
        Altering,
        Beating,
        Beginning,
        Deleting,
        Duplicating,
        Examined,
        Killable,
        Late,
        Merging,
        Nulling,
        Rekeying,
        Restarting,
        Stoppable,
        Switching,
        Truncating,
        Typed,
    )
}
NEVER_ASKED = (
    "resuming from every position, foreign and lost positions, what is acknowledged when: the deployment owns its "
    "positions; kill -9 of each of its processes is asked instead"
)
"""Of no deployment; told at the end of every run, so that nobody takes it for tested."""
ROW_BYTES = 10_000_000
_NEEDS_NO_REASON = ("Merging",)
"""Says how records are to be read, and adds no question."""


def undeclared(harness_type: type[Any]) -> list[str]:
    """What is wrong with what a harness declares, each a sentence."""
    reasons: Mapping[str, str] = getattr(harness_type, "not_applicable", {})
    found = []
    for name, ability in ABILITIES.items():
        has = issubclass(harness_type, ability)
        if has and name in reasons:
            found.append(f"has {name} and says that it is not applicable")
        elif not has and name not in reasons and name not in _NEEDS_NO_REASON:
            found.append(f"neither has {name} nor says in not_applicable why it can't be asked")
    if harness_type.row_bytes_max < ROW_BYTES and "row_bytes_max" not in reasons:
        found.append("row_bytes_max is below 10 MB, and not_applicable does not say why")
    return found
