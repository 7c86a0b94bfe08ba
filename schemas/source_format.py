"""How the topics of a source are named and written, where that is not what our own connectors do."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from schemas.record import Record


class SourceFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is its name in the configuration, for messages that name an option of it.

    `translate` gives the same record in JSON, where the topics hold another encoding; it raises DecodeError.
    """

    source: str
    topic_prefix: str
    flattened: bool = False
    """Rows at top level, as Debezium's ExtractNewRecordState leaves them; without, change envelopes."""
    plain_cells: bool = False
    """Of Scylla's connector: cdc.output.format=advanced."""
    full_images: bool = False
    """Of the same: a null is null, because every record shows the whole row."""
    translate: Callable[[Record], Record] | None = None
