"""The Scylla source: the CDC log tables, read in time windows, stream by stream."""
