"""What the flow says of a batch: the values that agents act on after the stores hold it."""

from __future__ import annotations

import msgspec

from pipeline.stores.store import AppliedPosition, Partition
from schemas.bundle import UnitKey
from schemas.record import Record


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that can never work. `digest` names the place of the failure; `bundle_keys` are root keys it affects."""

    record: Record
    reason: str
    digest: str
    bundle_keys: list[str] = []


class BatchReport(msgspec.Struct):
    """One batch: `fan_out` holds chunks of keys for the dirty topic, `applied` how far each partition came."""

    events: int = 0
    stale: int = 0
    bundles_written: int = 0
    fragments_written: int = 0
    round_trips: int = 0
    dead_letters: list[DeadLetter] = []
    fan_out: list[list[UnitKey]] = []
    applied: dict[Partition, AppliedPosition] = {}
