"""Existing Debezium deployments as a connector that the registry finds: their topics are read as they are."""

from __future__ import annotations

from connectors.registry import Plugin
from pipeline.core.debezium import CONNECTOR, DebeziumConfig

PLUGIN = Plugin(
    name=CONNECTOR,
    summary="Topics that Debezium fills already (Postgres, Cassandra, Scylla; JSON, flattened, Avro): nothing to run.",
    config=DebeziumConfig,
    source=None,
)
