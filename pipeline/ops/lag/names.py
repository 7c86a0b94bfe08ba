"""Which part of ctxpipe a consumer group is, by the names that schemas.topics gives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_OURS = re.compile(r"ctxpipe\.(?P<context>.+?)\.v(?P<version>\d+)(?:\.space\.(?P<space>.+))?")

WORKER, EMBEDDER, SERVE, CONNECTOR, CANARY = "worker", "embedder", "serve", "connector", "canary"


@dataclass(frozen=True, slots=True)
class Role:
    """`role` is empty for groups of others."""

    role: str = ""
    context: str = ""
    version: int = 0
    space: str = ""

    def labels(self) -> dict[str, Any]:
        """As GroupLag takes them."""
        return {"role": self.role, "context": self.context, "version": self.version, "space": self.space}

    def words(self, group: str) -> str:
        """As a person calls it."""
        if self.role == WORKER:
            return f"the workers of context {self.context} (version {self.version})"
        if self.role == EMBEDDER:
            return f"the embedding of context {self.context} (space {self.space})"
        return f"group {group}"


def role_of(group: str) -> Role:
    """Of a consumer group."""
    found = _OURS.fullmatch(group)
    if found is None:
        return Role()
    space = found["space"] or ""
    return Role(EMBEDDER if space else WORKER, found["context"], int(found["version"]), space)
