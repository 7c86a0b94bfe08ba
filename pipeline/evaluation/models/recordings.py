"""Recorded answers of models: what was asked, of which model, and the bytes that came; JSON Lines, reviewed in git.

A recording is found by the sha256 of the request's canonical JSON, the model and its revision. Its body is raw: what
was malformed stays malformed. Nothing here ever asks a model.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec

from pipeline.evaluation.digests import digest_of, sha256
from pipeline.evaluation.errors import SuiteError
from pipeline.guard.config import Endpoint
from pipeline.guard.http_client import HEADERS_KEPT
from pipeline.guard.values import Failure, RawAnswer

PATTERN = "*.jsonl"
LINE_BYTES_MAX = 64 * 1024 * 1024
_FAILURES = frozenset(get_args(Failure))


class RecordingError(SuiteError):
    """Recordings that can't be used; carries all mistakes, each with file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One answer. `draw`: the first, second, … to the same request, from 0. `asked`: the request's body. `on`: the day,
    "" where nobody noted it. `masked`: secrets that were in the answer, by name; stars stand for them."""

    key: str
    asked: Mapping[str, Any]
    answer: RawAnswer
    endpoint: str
    model: str
    revision: str = ""
    task: str = ""
    draw: int = 0
    on: str = ""
    masked: tuple[str, ...] = ()


def wire_bytes(body: Mapping[str, Any]) -> bytes:
    """A request's body as it is sent. Raises TypeError, ValueError, RecursionError or MsgspecError where JSON can't
    hold it."""
    return msgspec.json.encode(body)


def key_of(body: Mapping[str, Any], model: str, revision: str) -> str:
    """Sixty-four hexadecimal digits, the same for equal JSON, whatever the order of its fields. Raises as wire_bytes
    does."""
    return digest_of({"body": msgspec.json.decode(wire_bytes(body)), "model": model, "revision": revision})


class Recordings:
    """All of a suite, by key and draw. Raises RecordingError where two claim the same place."""

    def __init__(self, found: Iterable[Recording] = ()) -> None:
        self._by_key: dict[str, dict[int, Recording]] = {}
        mistakes = []
        for one in found:
            draws = self._by_key.setdefault(one.key, {})
            if one.draw in draws:
                mistakes.append(f"two recordings have the key {one.key[:12]}… and draw {one.draw}; keep one")
            draws[one.draw] = one
        if mistakes:
            raise RecordingError(mistakes)

    def __len__(self) -> int:
        return sum(len(draws) for draws in self._by_key.values())

    def __iter__(self) -> Iterator[Recording]:
        """By key, then draw: the order of files."""
        for key in sorted(self._by_key):
            yield from (self._by_key[key][draw] for draw in sorted(self._by_key[key]))

    def find(self, key: str, number: int) -> Recording | None:
        """Of the request that is asked for the `number`-th time, from 0; the last draw for all that follow."""
        draws = self._by_key.get(key)
        return None if draws is None else draws[min(number, len(draws) - 1)]

    def has(self, key: str, draw: int) -> bool:
        return draw in self._by_key.get(key, ())

    def nearest(self, body: Mapping[str, Any], task: str, model: str) -> Difference | None:
        """Where the request differs from the one recorded for the same task and model that is most like it."""
        alike = [draws[0] for draws in self._by_key.values() if draws[0].model == model and draws[0].task == task]
        now = msgspec.json.decode(wire_bytes(body))
        found = [difference for one in alike if (difference := first_difference(one.asked, now)) is not None]
        return max(found, key=lambda difference: difference.alike, default=None)


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two requests: the JSON Pointer of the first, some characters of both, and how much before it is alike."""

    where: str
    recorded: str
    now: str
    alike: int


def first_difference(recorded: Any, now: Any, where: str = "", before: int = 0) -> Difference | None:
    """None: they are equal. Fields in alphabetical order."""
    if isinstance(recorded, Mapping) and isinstance(now, Mapping):
        fields = sorted({*recorded, *now})
        pairs = [(f"{where}/{name}", recorded.get(name, _ABSENT), now.get(name, _ABSENT)) for name in fields]
    elif isinstance(recorded, list) and isinstance(now, list):
        most = max(len(recorded), len(now))
        pairs = [(f"{where}/{n}", _item(recorded, n), _item(now, n)) for n in range(most)]
    elif isinstance(recorded, str) and isinstance(now, str) and recorded != now:
        same = next((n for n, (a, b) in enumerate(zip(recorded, now, strict=False)) if a != b), None)
        same = min(len(recorded), len(now)) if same is None else same
        return Difference(where or "/", _around(recorded, same), _around(now, same), before + same)
    else:
        equal = recorded == now and type(recorded) is type(now)
        return None if equal else Difference(where or "/", _told(recorded), _told(now), before)
    for place, left, right in pairs:
        found = first_difference(left, right, place, before)
        if found is not None:
            return found
        before += len(_told(left))
    return None


_ABSENT = object()


def _item(values: Sequence[Any], number: int) -> Any:
    return values[number] if number < len(values) else _ABSENT


def _told(value: Any) -> str:
    return "nothing" if value is _ABSENT else msgspec.json.encode(value).decode()[:60]


def _around(text: str, place: int) -> str:
    return repr(("…" if place > 20 else "") + text[max(0, place - 20) : place + 40])


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """As it stands in a file; times in milliseconds."""

    key: str
    draw: int = 0
    task: str = ""
    endpoint: str
    model: str
    revision: str = ""
    on: str = ""
    asked: dict[str, Any]
    status: int = 0
    headers: dict[str, str] = {}
    body: str | None = None
    body_base64: str | None = None
    failure: str | None = None
    detail: str = ""
    first_byte_ms: float = 0.0
    took_ms: float = 0.0
    masked: list[str] = []


_DECODER = msgspec.json.Decoder(_Line)


def kept_s(seconds: float) -> float:
    """As it will be when it is read again: files have milliseconds with three digits."""
    return _ms(seconds) / 1000


def read_recordings(folder: Path) -> Recordings:
    """All `*.jsonl` in the folder and below it; none where there is no folder. Raises RecordingError."""
    found: dict[tuple[str, int], tuple[Recording, str]] = {}
    mistakes: list[str] = []
    for file in sorted(folder.rglob(PATTERN)):
        for number, line in enumerate(_lines(file, mistakes), start=1):
            where = f"{file}:{number}"
            read = _read(line, where, mistakes) if line.strip() else None
            if read is None:
                continue
            place = (read.key, read.draw)
            if place in found:
                mistakes.append(_twice(read, *found[place], where))
            else:
                found[place] = (read, where)
    for (key, draw), (_, where) in found.items():
        if draw and (key, draw - 1) not in found:
            mistakes.append(f"{where}: draw {draw} of {key[:12]}… has no draw {draw - 1} before it; number them from 0")
    if mistakes:
        raise RecordingError(mistakes)
    return Recordings(recording for recording, _ in found.values())


def write_recordings(folder: Path, recordings: Iterable[Recording]) -> list[Path]:
    """One file per task, in the order of keys: the same recordings give the same bytes. Files of tasks that have none
    any more are removed. Returns what there is."""
    by_file: dict[str, list[Recording]] = {}
    for one in recordings:
        by_file.setdefault(_file_name(one.task), []).append(one)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.rglob(PATTERN):
        if old.parent != folder or old.name not in by_file:
            old.unlink()
    for name, listed in by_file.items():
        lines = [line_of(one) for one in sorted(listed, key=lambda one: (one.key, one.draw))]
        fresh = folder / f".{name}.new"
        fresh.write_bytes(b"".join(line + b"\n" for line in lines))
        fresh.replace(folder / name)
    return [folder / name for name in sorted(by_file)]


def line_of(one: Recording) -> bytes:
    """Its line in a file, without the end of line."""
    answer = one.answer
    try:
        text, encoded = answer.body.decode(), None
    except UnicodeDecodeError:
        text, encoded = None, base64.b64encode(answer.body).decode()
    line = _Line(
        key=one.key,
        draw=one.draw,
        task=one.task,
        endpoint=one.endpoint,
        model=one.model,
        revision=one.revision,
        on=one.on,
        asked=dict(one.asked),
        status=answer.status,
        headers=dict(answer.headers),
        body=text or None,
        body_base64=encoded,
        failure=answer.failure,
        detail=answer.detail,
        first_byte_ms=_ms(answer.first_byte_s),
        took_ms=_ms(answer.took_s),
        masked=list(one.masked),
    )
    return msgspec.json.encode(line, order="deterministic")


def recording_of(
    body: Mapping[str, Any], endpoint: Endpoint, answer: RawAnswer, *, task: str = "", draw: int = 0, on: str = ""
) -> Recording:
    """Of an answer that came, or that a generator makes. Raises as wire_bytes does. Secrets are not looked for here:
    see `secrets`."""
    return Recording(
        key=key_of(body, endpoint.model, endpoint.revision),
        asked=msgspec.json.decode(wire_bytes(body)),
        answer=answer,
        endpoint=endpoint.name,
        model=endpoint.model,
        revision=endpoint.revision,
        task=task,
        draw=draw,
        on=on,
    )


def _lines(file: Path, mistakes: list[str]) -> list[bytes]:
    try:
        return file.read_bytes().split(b"\n")
    except OSError as error:
        mistakes.append(f"{file}: can't be read: {error.strerror}")
        return []


def _read(line: bytes, where: str, mistakes: list[str]) -> Recording | None:
    if len(line) > LINE_BYTES_MAX:
        mistakes.append(f"{where}: has {len(line)} bytes, at most {LINE_BYTES_MAX} are read")
        return None
    try:
        read = _DECODER.decode(line)
        expected = key_of(read.asked, read.model, read.revision)
        body = _body(read)
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, RecursionError) as error:
        mistakes.append(f"{where}: is no recording: {error}. Undo the change, or remove the line and record it anew")
        return None
    told = _mistakes(read, expected)
    mistakes += [f"{where}: {one}" for one in told]
    return None if told else _recording(read, body)


def _mistakes(read: _Line, expected: str) -> list[str]:
    found = []
    if read.key != expected:
        found.append(
            f"the key {read.key[:12]}… is not that of its request, model and revision ({expected[:12]}…): the line "
            "was changed by hand. Undo that, or remove the line and record it anew"
        )
    if read.failure is None and not 100 <= read.status <= 599:
        found.append(f"has neither a failure nor a status of HTTP ({read.status})")
    if read.failure is not None and read.failure not in _FAILURES:
        found.append(f"the failure {read.failure!r} is none of {', '.join(sorted(_FAILURES))}")
    if read.body is not None and read.body_base64 is not None:
        found.append("has both body and body_base64; keep one")
    if read.draw < 0 or not all(math.isfinite(ms) and ms >= 0 for ms in (read.first_byte_ms, read.took_ms)):
        found.append("draw, first_byte_ms and took_ms are 0 or more")
    unkept = sorted(set(read.headers) - set(HEADERS_KEPT))
    if unkept:
        found.append(f"the header {', '.join(unkept)} is not one that is kept; there are {', '.join(HEADERS_KEPT)}")
    return found


def _body(read: _Line) -> bytes:
    if read.body_base64 is not None:
        return base64.b64decode(read.body_base64, validate=True)
    return (read.body or "").encode()


def _recording(read: _Line, body: bytes) -> Recording:
    answer = RawAnswer(
        status=read.status,
        headers=read.headers,
        body=body,
        failure=read.failure,  # type: ignore[arg-type]  # one of them, as _mistakes made sure
        detail=read.detail,
        first_byte_s=read.first_byte_ms / 1000,
        took_s=read.took_ms / 1000,
    )
    return Recording(
        key=read.key,
        asked=read.asked,
        answer=answer,
        endpoint=read.endpoint,
        model=read.model,
        revision=read.revision,
        task=read.task,
        draw=read.draw,
        on=read.on,
        masked=tuple(read.masked),
    )


def _twice(read: Recording, other: Recording, first: str, where: str) -> str:
    alike = line_of(read) == line_of(other)
    kind = "is the same recording again" if alike else "is another answer to the same request"
    return f"{where}: {kind} as at {first} (key {read.key[:12]}…, draw {read.draw}); keep one, or number the draws"


def _file_name(task: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in task)[:60] or "any"
    if kept != task:
        kept += "-" + sha256(task.encode())[:8]
    return f"{kept}.jsonl"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
