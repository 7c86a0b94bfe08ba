"""A directory of JSON Lines files as a source: logs, event exports, whatever appends a line per change."""
