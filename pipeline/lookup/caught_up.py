"""Whether a server that has just begun finds what its like find: its indexes have been read to their ends once."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.lookup.service import LookupService
from pipeline.lookup.spaces import OpenSpace, SpaceKeeper

PATIENCE_S = 10.0
"""A Kafka that does not answer for so long from the start is not waited for: lookups need none, and neither does a
search in an index that lies on the disk."""


class CaughtUp:
    """A check of readiness (pipeline.core.health). What falls behind later is told by answers and metrics: all servers
    read the same topics, and would all step back."""

    def __init__(self, service: LookupService, spaces: SpaceKeeper, now_s: Callable[[], float]) -> None:
        self._service, self._spaces, self._now_s = service, spaces, now_s
        self._began_s, self._once = now_s(), False

    def __call__(self) -> str:
        """Why not yet."""
        problem = "" if self._once else self._waits_for()
        self._once = not problem
        return problem

    def _waits_for(self) -> str:
        embedding = [served.spec.context for served in self._service.versions if served.embeds]
        if embedding and not self._spaces.looked:
            return "the embedding spaces are being looked for"
        impatient = self._now_s() - self._began_s > PATIENCE_S
        for context in embedding:
            serving = self._spaces.serving(context)
            if serving is not None and (waits := _unread(serving.space, impatient)):
                return f"{context}: {waits}"
        return ""


def _unread(space: OpenSpace, impatient: bool) -> str:
    replica = space.replica
    if replica.problem:
        return "" if impatient else f"space {space.space}: {replica.problem}"
    if not (replica.vectors_loaded and replica.texts_loaded):
        return f"space {space.space} is being read, {replica.behind_records} records are left"
    return f"space {space.space}: its engine is being opened" if space.opens_engine else ""
