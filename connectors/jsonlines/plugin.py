"""JSON Lines files as a connector that the registry finds."""

from __future__ import annotations

from connectors.jsonlines.config import JsonLinesConfig
from connectors.jsonlines.source import JsonLinesSource
from connectors.registry import Plugin

PLUGIN = Plugin(
    name="jsonlines",
    summary="Append-only JSON Lines files of a directory, through rotation: a line is a row, the last one counts.",
    config=JsonLinesConfig,
    source=JsonLinesSource,
)
