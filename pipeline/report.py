"""What the flow says of a batch: the values that agents act on after the stores hold it."""

from __future__ import annotations

import hashlib
import traceback

import msgspec

from pipeline.stores.store import AppliedPosition, Partition
from schemas.bundle import UnitKey
from schemas.headers import Headers
from schemas.record import Record


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that can never work. `digest` tells failures at one place from others (`digest_of`); `bundle_keys` are
    root keys it affects."""

    record: Record
    reason: str
    digest: str
    bundle_keys: list[str] = []


def digest_of(error: Exception) -> str:
    """Kind and place of a failure, then eight hex digits of its whole traceback: equal for equal causes in one release,
    whatever the record: "DecodeError in parse 1f2e3d4c"."""
    steps = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [(code.co_filename.rpartition("/")[2], code.co_name, line) for code, line in steps]
    hashed = hashlib.blake2b(repr((type(error).__name__, places)).encode(), digest_size=4).hexdigest()
    return f"{type(error).__name__} in {places[-1][1] if places else 'nowhere'} {hashed}"


class Times(msgspec.Struct):
    """When a batch got where, for freshness and traces: microseconds since 1970 UTC, 0 for what there was none of.

    `live_us`: when the changes that made a difference were committed, rows of snapshots left out, which are counted in
    `snapshot_rows`. `to_kafka_us`: how long those took to Kafka whose connector is not ours. `stored`: the last bundle
    was put.
    """

    live_us: list[int] = []
    to_kafka_us: list[int] = []
    snapshot_rows: int = 0
    applied: int = 0
    assembled: int = 0
    stored: int = 0


class BatchReport(msgspec.Struct):
    """One batch: `fan_out` holds chunks of keys for the dirty topic, `applied` how far each partition came.
    `fan_out_ends`, once the chunks are published: partition of the dirty topic → the offset behind the last of them.
    `headers` go with chunks and requests for texts, beside them `trace` with chunks, and with a request that of its key
    in `traces`."""

    events: int = 0
    stale: int = 0
    bundles_written: int = 0
    fragments_written: int = 0
    round_trips: int = 0
    dead_letters: list[DeadLetter] = []
    fan_out: list[list[UnitKey]] = []
    fan_out_ends: dict[int, int] = {}
    texts_wanted: dict[str, None] = {}
    """Root keys whose texts are to be looked at again, because the bundle or a fragment in it was written."""
    applied: dict[Partition, AppliedPosition] = {}
    times: Times = msgspec.field(default_factory=Times)
    headers: Headers = ()
    trace: Headers = ()
    traces: dict[str, Headers] = {}
