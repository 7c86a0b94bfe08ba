"""The Postgres source: logical replication (pgoutput) and snapshots."""
