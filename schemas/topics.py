"""Topic and group names: the only place where one is spelled."""

from __future__ import annotations

import re

HEARTBEAT_PREFIX = "ctxpipe.heartbeat"
"""Prefix of the logical messages that say: everything committed before has been published (see DESIGN section 7)."""

_INVALID = re.compile(r"[^a-zA-Z0-9._-]")


def table_topic(source: str, table: str) -> str:
    """`<source>.<schema>.<table>`, as Debezium names it; characters that Kafka refuses become `_`."""
    return _INVALID.sub("_", f"{source}.{table}")


def message_topic(source: str) -> str:
    """Where logical messages that are not heartbeats go, as with Debezium."""
    return _INVALID.sub("_", f"{source}.message")


def dead_letter_topic(context: str) -> str:
    """Of a context, or of a source whose connector set rows aside."""
    return _INVALID.sub("_", f"ctxpipe.{context}.dead-letter")


def decision_topic(name: str) -> str:
    """What became of the dead letters of `name`: who redrove or discarded which; compacted, one partition."""
    return _INVALID.sub("_", f"ctxpipe.{name}.dead-letter-decisions")


def positions_topic(source: str) -> str:
    """Where a connector keeps how far its source is in Kafka; compacted, one record per source."""
    return _INVALID.sub("_", f"ctxpipe.{source}.positions")


def dirty_topic(context: str, version: int) -> str:
    """The fan-out lane: bundle keys to rebuild, in chunks."""
    return _INVALID.sub("_", f"ctxpipe.{context}.v{version}.dirty")


def consumer_group(context: str, version: int) -> str:
    """One group per context version, so that a new version reads everything again beside the serving one."""
    return _INVALID.sub("_", f"ctxpipe.{context}.v{version}")


def request_topic(context: str, version: int) -> str:
    """Keys of bundles that were written, for every embedding space of the version; compacted, keyed by bundle."""
    return _INVALID.sub("_", f"ctxpipe.{context}.v{version}.texts-wanted")


def text_topic(context: str, version: int, space: str) -> str:
    """Texts to embed, and to search lexically; compacted, keyed by bundle."""
    return _INVALID.sub("_", f"ctxpipe.{context}.v{version}.texts.{space}")


def vector_topic(context: str, version: int, space: str) -> str:
    """The truth about a space's vectors; compacted, keyed by bundle."""
    return _INVALID.sub("_", f"ctxpipe.{context}.v{version}.vectors.{space}")


def space_group(context: str, version: int, space: str) -> str:
    """One group per space, so that a new one reads everything again beside the serving one."""
    return _INVALID.sub("_", f"ctxpipe.{context}.v{version}.space.{space}")
