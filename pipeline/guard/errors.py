"""What the guard lets pass although it answers whatever models do: mistakes of the one who set it up."""

from __future__ import annotations

from pipeline.core.errors import Fatal


class HarnessError(Fatal):
    """A stand-in for endpoints can't do its work, such as a recording that is missing: no rung may hide that."""
