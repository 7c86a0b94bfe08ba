"""The last rung: what a person needs to answer in a model's stead, and where it is put.

The queue in Kafka is pipeline.streams.escalation_queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.guard.values import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """One question that nothing could answer. `output_name` and `json_schema` say what the answer has to be; `attempts`
    what was tried. `last_output` is the text of the last answer that was refused, cut to a readable length."""

    id: str
    task: str
    tenant: str | None
    request_id: str
    at_us: int
    messages: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]
    output_name: str
    json_schema: Mapping[str, Any] | None
    attempts: Sequence[Attempt]
    last_output: str


class Escalations(Protocol):
    """A queue of questions for people.

    `put` returns when the record is durable, and raises a CtxpipeError or OSError when it can't be; the same `id` may
    come again and stays one. The guard waits for it no longer than the caller's deadline, lets it go on after that, and
    says which it was.
    """

    async def put(self, escalation: Escalation) -> None: ...


class MemoryEscalations:
    """The last `records_max`, gone with the process: for tests and trials."""

    def __init__(self, records_max: int = 10_000) -> None:
        self.records: deque[Escalation] = deque(maxlen=records_max)

    async def put(self, escalation: Escalation) -> None:
        self.records.append(escalation)
