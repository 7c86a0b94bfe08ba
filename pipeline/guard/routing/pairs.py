"""What the active model and the candidate said to the same question, kept in files that a comparison reads later.

One line of JSON a pair: the question's key, both answers with the text as it came, and what they were scored. Neither
the question nor the application's data is in it, and no secret.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pipeline.core.errors import CtxpipeError
from pipeline.guard.config import Endpoint
from pipeline.guard.secrets import Plain, Secrets
from pipeline.guard.values import ModelRequest, Result

Score = Callable[[ModelRequest, Result], Mapping[str, float]]
"""What an answer is worth, each from 0 to 1: a task's own measure. `score` is what comparisons go by where nothing else
is asked for. It is called off the request's path; `result.answered` is False where the model had no answer that
holds."""

RAW_CHARACTERS_MAX = 200_000
_ITEMS_MAX = 10_000


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. `output` None with a `reason` where there was none that holds. `cost` None: unknown."""

    endpoint: str
    model: str
    revision: str
    output: Any
    reason: str
    raw: str
    latency_ms: float
    cost: float | None
    malformed: bool
    tokens: int | None
    scores: dict[str, float]


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """`key`: the same for the same request_id, or for the same question where it has none. `group`: the tenant, or the
    key. `share`: of all questions, how many were copied at that time."""

    key: str
    task: str
    group: str
    at_us: int
    share: float
    active: Side
    candidate: Side


class Pairs(Protocol):
    """Where pairs go. `put` returns when it is written; it raises a CtxpipeError or OSError when it can't be."""

    async def put(self, pair: Pair) -> None: ...


class MemoryPairs:
    """For tests."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []

    async def put(self, pair: Pair) -> None:
        self.pairs.append(pair)


class PairFile:
    """Appends to `path`; at `bytes_max` it becomes `path.1`, that one `path.2`, and beyond `files_max` the oldest goes.
    Several processes may share it. Writes in a thread."""

    def __init__(self, path: Path, bytes_max: int = 64 * 1024 * 1024, files_max: int = 4) -> None:
        self.path, self._bytes_max, self._files_max = path, bytes_max, files_max
        self._writing = asyncio.Lock()

    async def put(self, pair: Pair) -> None:
        line = msgspec.json.encode(pair) + b"\n"
        async with self._writing:
            await asyncio.to_thread(self._write, line)

    def _write(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists() and self.path.stat().st_size + len(line) > self._bytes_max:
                self._rotate()
            with self.path.open("ab") as file:
                file.write(line)

    def _rotate(self) -> None:
        for number in range(self._files_max - 1, 0, -1):
            older = self.path if number == 1 else _numbered(self.path, number - 1)
            if older.exists():
                older.replace(_numbered(self.path, number))
        self.path.unlink(missing_ok=True)


def read_pairs(path: Path) -> list[Pair]:
    """Of a file and those that it was rotated into, the oldest first; of a key the newest. A last line that is cut, as
    a kill leaves it, is passed over. Raises CtxpipeError for any other that is no pair, with its file and line."""
    files = [path]
    while (older := _numbered(path, len(files))).exists():
        files.append(older)
    found: dict[tuple[str, str], Pair] = {}
    for file in reversed(files):
        for pair in _pairs_in(file):
            found.pop((pair.task, pair.key), None)
            found[pair.task, pair.key] = pair
    return list(found.values())


def key_of(request: ModelRequest) -> str:
    """Of a request, 32 characters; nothing of it can be read from it."""
    named = request.request_id.encode()
    if not named:
        named = msgspec.json.encode([request.task, list(request.messages)], enc_hook=str, order="sorted")
    return hashlib.sha256(named).hexdigest()[:32]


def side_of(result: Result, endpoint: Endpoint, scores: Mapping[str, float], secrets: Secrets) -> Side:
    """`result` as the endpoint alone gave it."""
    calls = [_call(call.name, call.arguments) for call in result.tool_calls]
    asked = [one for one in result.attempts if one.asked and one.endpoint == result.endpoint]
    counted = (result.tokens.input, result.tokens.output)
    return Side(
        endpoint=endpoint.name,
        model=endpoint.model,
        revision=endpoint.revision,
        output=Plain(secrets, RAW_CHARACTERS_MAX, _ITEMS_MAX).of(calls or result.output),
        reason=result.reason if not result.answered else "",
        raw=secrets.masked(_text(result.raw))[:RAW_CHARACTERS_MAX],
        latency_ms=round(1000 * sum(one.took_s for one in asked), 3),
        cost=None if result.cost is None else float(result.cost),
        malformed=any(one.reason == "invalid_output" for one in asked),
        tokens=None if counted == (None, None) else sum(count or 0 for count in counted),
        scores=dict(scores),
    )


def _call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"tool": name, "arguments": dict(arguments)}


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()


def _pairs_in(file: Path) -> list[Pair]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CtxpipeError(f"{file}: the pairs can't be read: {error.strerror}") from None
    found = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found.append(msgspec.json.decode(line, type=Pair))
        except msgspec.MsgspecError as error:
            if number == len(lines):
                break
            raise CtxpipeError(f"{file}:{number}: is no pair of answers: {error}") from None
    return found


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
