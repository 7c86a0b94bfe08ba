"""The in-memory reference of embedding spaces: what redis_spaces.py must do, in plain Python, for tests and
simulation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from msgspec.structs import replace

from pipeline.core.clock import SystemClock
from pipeline.stores.spaces import SpaceRecord, SpaceState, VectorState


class MemorySpaces:
    """See SpaceStore."""

    def __init__(self, now_us: Callable[[], int] | None = None) -> None:
        self.records: dict[str, SpaceRecord] = {}
        self._now_us = now_us or SystemClock().now_us

    async def register(self, record: SpaceRecord) -> SpaceRecord:
        known = self.records.get(record.space)
        if known is not None and known.state != "retired":
            return known
        for other in self.records.values():
            if other.state == "candidate":
                self._move(other.space, "retired")
        self.records[record.space] = replace(record, state="candidate", changed_us=self._now_us(), evidence=b"")
        return self.records[record.space]

    async def all(self) -> list[SpaceRecord]:
        return sorted(self.records.values(), key=lambda record: (record.created_us, record.space))

    async def serving(self) -> str | None:
        return next((record.space for record in self.records.values() if record.state == "serving"), None)

    async def promote(self, space: str, instead_of: str | None, evidence: bytes) -> bool:
        record, serving = self.records.get(space), await self.serving()
        if record is None or record.state == "retired" or serving != instead_of or space == serving:
            return False
        for other in self.records.values():
            if other.state == "previous":
                self._move(other.space, "retired")
        if serving is not None:
            self._move(serving, "previous")
        self.records[space] = replace(record, state="serving", changed_us=self._now_us(), evidence=evidence)
        return True

    async def note(self, space: str, evidence: bytes) -> None:
        if space in self.records:
            self.records[space] = replace(self.records[space], evidence=evidence)

    async def retire(self, space: str) -> bool:
        record = self.records.get(space)
        if record is None or record.state == "serving":
            return False
        if record.state != "retired":
            self._move(space, "retired")
        return True

    def _move(self, space: str, state: SpaceState) -> None:
        self.records[space] = replace(self.records[space], state=state, changed_us=self._now_us())


class MemoryVectorStates:
    """See VectorStateStore. Remembers deletions for ever."""

    def __init__(self) -> None:
        self.spaces: dict[str, dict[str, VectorState]] = {}

    async def read_states(self, space: str, keys: Sequence[str]) -> list[VectorState | None]:
        return [self.spaces.get(space, {}).get(key) for key in keys]

    async def write_texts(self, space: str, states: Mapping[str, VectorState]) -> list[bool]:
        return [self._write_text(self.spaces.setdefault(space, {}), key, state) for key, state in states.items()]

    def _write_text(self, known: dict[str, VectorState], key: str, state: VectorState) -> bool:
        before = known.get(key)
        if before is None:
            known[key] = replace(state, vector_hash="", vector_at=-1)
            return True
        if any(ours > theirs for ours, theirs in zip(_newness(before), _newness(state), strict=True)):
            return False
        known[key] = replace(
            state,
            vector_hash=before.vector_hash,
            vector_at=before.vector_at,
            problem=before.problem if state.text_hash and state.text_hash == before.text_hash else state.problem,
        )
        return True

    async def write_vectors(
        self, space: str, hashes: Mapping[str, tuple[str, str]], offsets: Mapping[str, int] | None = None
    ) -> list[bool]:
        known, taken = self.spaces.get(space, {}), []
        for key, (text_hash, problem) in hashes.items():
            state = known.get(key)
            wanted = state is not None and state.text_hash == text_hash
            if state is not None:
                known[key] = _with_vector(state, text_hash, problem, (offsets or {}).get(key))
            taken.append(wanted)
        return taken

    async def write_problems(self, space: str, problems: Mapping[str, tuple[str, str]]) -> None:
        known = self.spaces.get(space, {})
        for key, (text_hash, problem) in problems.items():
            state = known.get(key)
            if state is not None and state.text_hash == text_hash:
                known[key] = replace(state, problem=problem)

    async def scan_states(self, space: str) -> AsyncIterator[tuple[str, VectorState]]:
        for key, state in list(self.spaces.get(space, {}).items()):
            yield key, state

    async def forget(self, space: str) -> int:
        return len(self.spaces.pop(space, {}))


def _newness(state: VectorState) -> tuple[int, int, int]:
    return state.counter, state.asked_at, state.text_at


def _with_vector(state: VectorState, text_hash: str, problem: str, at: int | None) -> VectorState:
    newer = at is None or at > state.vector_at
    if text_hash and text_hash == state.text_hash and (newer or (at == state.vector_at and problem)):
        state = replace(state, problem=problem)
    return replace(state, vector_hash=text_hash, vector_at=state.vector_at if at is None else at) if newer else state
