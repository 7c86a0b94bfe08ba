"""How long the suite waits; pytest's options set it (plugin.py)."""

from __future__ import annotations


class Limits:
    """`patience_s`: for something that must come about, before its absence is a failure."""

    patience_s = 40.0
