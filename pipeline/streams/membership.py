"""A worker's own name in its group (`group.instance.id`): who comes back with it gets its partitions again, and nobody
else stands still. Two that run with one name take it from each other; this says so, because the client does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiokafka.protocol.group import HeartbeatRequest

from pipeline.streams.ending import Restart

UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID = 25, 82
NAME_LENGTH_MAX = 249
"""Of Kafka."""


class NameTaken(Restart):
    """Another process has our name in the group; perhaps it was leaving."""


def member_name(worker: str, number: int) -> str | None:
    """Of the process with this number of a worker; None where workers have no names."""
    return f"{worker}-{number}"[-NAME_LENGTH_MAX:] if worker else None


def watch_name(
    coordinator: Any,
    name: str,
    session_s: float,
    taken: Callable[[NameTaken], None],
    now_s: Callable[[], float] = time.monotonic,
) -> None:
    """Looks at what the group's coordinator answers to aiokafka's `coordinator`. A member that was forgotten although
    its heartbeats came in time was replaced: aiokafka would join again under the name, and replace the other."""
    send, last_s = coordinator._send_req, now_s()

    async def watched(request: Any) -> Any:
        nonlocal last_s
        response = await send(request)
        code = getattr(response, "error_code", 0)
        beats = isinstance(request, HeartbeatRequest)
        replaced = beats and code == UNKNOWN_MEMBER_ID and now_s() - last_s < session_s
        if code == FENCED_INSTANCE_ID or replaced:
            taken(NameTaken(_told(name, coordinator.group_id)))
        if code == 0:
            last_s = now_s()
        return response

    coordinator._send_req = watched


def _told(name: str, group: str) -> str:
    return (
        f"another process works as {name!r} in group {group}, and has got the partitions of this one. Give every "
        "worker a name of its own (kafka: group.instance.id, e.g. ${POD_NAME} of a StatefulSet), or none"
    )
