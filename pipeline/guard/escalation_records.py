"""Questions and answers of people as they stand in the log: a line of JSON each, keyed so that compaction keeps both.

A question has its id as the key, an answer the id and a name of its own, so none replaces another. Of the answers to
one question the first in the log counts, for every reader alike; later ones stay there and count for nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.guard.escalations import Escalation
from pipeline.guard.secrets import Plain, Secrets

BYTES_MAX = 900_000
"""Of a record: what Kafka takes where nobody set it otherwise."""
ANSWER_BYTES_MAX = 500_000
NOTE_CHARACTERS_MAX = 4_000
_ROOM = ((200_000, 500), (20_000, 200), (2_000, 100), (200, 40), (20, 0))
"""(characters of a text, items of a list): tried until it fits."""


class Tried(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt before it came to a person; see values.Attempt."""

    rung: str
    endpoint: str
    model: str = ""
    reason: str = ""
    detail: str = ""
    asked: bool = True
    status: int = 0
    took_s: float = 0.0
    invalid: str = ""
    repair_turn: bool = False


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="question", tag_field="kind"):
    """See escalations.Escalation. `cut`: not all of the messages and data is here."""

    id: str
    task: str
    at_us: int
    tenant: str | None = None
    request_id: str = ""
    output_name: str = "text"
    json_schema: dict[str, Any] | None = None
    attempts: list[Tried] = []
    last_output: str = ""
    messages: list[Any] = []
    data: dict[str, Any] = {}
    cut: bool = False


class PersonsAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="answer", tag_field="kind"):
    """`to` is the question's id; `value` fits its schema, a text where it has none."""

    to: str
    value: Any
    by: str
    at_us: int
    note: str = ""


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """What is listed of a record of either kind, without what it says."""

    kind: str
    id: str = ""
    to: str = ""
    task: str = ""
    tenant: str | None = None
    request_id: str = ""
    at_us: int = 0
    by: str = ""
    output_name: str = ""
    attempts: list[Tried] = []


@dataclass(slots=True)
class Standing:
    """One question: where it is in the log, and what has been answered. Numbers are offsets."""

    number: int | None = None
    heading: Heading | None = None
    answers: list[tuple[int, Heading]] = field(default_factory=list)

    @property
    def answered(self) -> tuple[int, Heading] | None:
        """The answer that counts."""
        return self.answers[0] if self.answers else None

    @property
    def open(self) -> bool:
        return self.heading is not None and not self.answers


class Standings:
    """Records added up in the order of the log. An answer without its question waits for one that may be put again."""

    def __init__(self) -> None:
        self.by_id: dict[str, Standing] = {}

    def add(self, number: int, heading: Heading) -> None:
        if heading.kind == "question":
            standing = self.by_id.setdefault(heading.id, Standing())
            if standing.heading is None:
                standing.heading = heading
            standing.number = number  # of one that was put twice, compaction keeps the last
        else:
            self.by_id.setdefault(heading.to, Standing()).answers.append((number, heading))

    def drop_below(self, first: int) -> None:
        """What the log no longer has."""
        gone = [key for key, one in self.by_id.items() if one.number is not None and one.number < first]
        gone += [key for key, one in self.by_id.items() if one.number is None and one.answers[-1][0] < first]
        for key in gone:
            del self.by_id[key]

    @property
    def questions(self) -> list[Standing]:
        """By their place in the log."""
        found = [one for one in self.by_id.values() if one.heading is not None]
        return sorted(found, key=lambda one: one.number or 0)

    def named(self, text: str) -> list[Standing]:
        """Those whose id is this, or begins with it."""
        exact = self.by_id.get(text)
        if exact is not None and exact.heading is not None:
            return [exact]
        return [one for one in self.questions if one.heading is not None and one.heading.id.startswith(text)]


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Question | PersonsAnswer)
_HEADINGS = msgspec.json.Decoder(Heading)


def encode_question(escalation: Escalation, secrets: Secrets) -> tuple[bytes, bytes]:
    """(key, value), without secrets and never larger than BYTES_MAX."""
    for characters, items in _ROOM:
        value = _ENCODER.encode(_question(escalation, secrets, Plain(secrets, characters, items)))
        if len(value) <= BYTES_MAX:
            break
    return escalation.id.encode(), value


def encode_answer(answer: PersonsAnswer, own_name: str) -> tuple[bytes, bytes]:
    """(key, value). `own_name` is another one for each answer."""
    note = answer.note[:NOTE_CHARACTERS_MAX]
    return f"{answer.to}/answer/{own_name}".encode(), _ENCODER.encode(msgspec.structs.replace(answer, note=note))


def decode(value: bytes | None) -> Question | PersonsAnswer:
    """Raises ValueError on bytes that are neither."""
    try:
        found: Question | PersonsAnswer = _DECODER.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"neither a question nor an answer: {error}") from None
    return found


def decode_heading(value: bytes | None) -> Heading:
    """As `decode`, without reading the rest."""
    try:
        heading = _HEADINGS.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"neither a question nor an answer: {error}") from None
    if heading.kind not in ("question", "answer") or not (heading.id or heading.to):
        raise ValueError(f"neither a question nor an answer: kind {heading.kind!r}")
    return heading


def standings_of(records: Iterable[tuple[int, bytes | None]]) -> Standings:
    """What is no record of ours is passed over."""
    found = Standings()
    for number, value in records:
        try:
            found.add(number, decode_heading(value))
        except ValueError:
            continue
    return found


def skeleton(schema: Mapping[str, Any] | None) -> Any:
    """A value of the right form to begin an answer with: first choices, 0, empty texts."""
    return "" if schema is None else _skeleton(schema, schema, 0)


def _skeleton(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > 8:
        return None
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _skeleton(_referred(root, reference), root, depth + 1)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    for name in ("enum", "examples"):
        if isinstance(schema.get(name), list) and schema[name]:
            return schema[name][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(name), list) and schema[name]:
            return _skeleton(schema[name][0], root, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        wanted = schema.get("required", list(properties))
        return {name: _skeleton(properties.get(name), root, depth + 1) for name in wanted}
    return {"array": [], "string": "", "integer": 0, "number": 0, "boolean": False}.get(str(kind))


def _referred(root: Mapping[str, Any], reference: str) -> Any:
    part: Any = root
    for name in reference.removeprefix("#/").split("/"):
        part = part.get(name) if isinstance(part, Mapping) else None
    return part


def _question(escalation: Escalation, secrets: Secrets, plain: Plain) -> Question:
    attempts = [
        Tried(
            rung=one.rung,
            endpoint=one.endpoint,
            model=one.model,
            reason=one.reason,
            detail=secrets.masked(one.detail),
            asked=one.asked,
            status=one.status,
            took_s=round(one.took_s, 6),
            invalid=one.invalid,
            repair_turn=one.repair_turn,
        )
        for one in escalation.attempts
    ]
    # A schema that is cut would be another one; it is written by the application's people and has no secrets of users.
    return Question(
        id=escalation.id,
        task=escalation.task,
        at_us=escalation.at_us,
        tenant=escalation.tenant,
        request_id=plain.text(escalation.request_id),
        output_name=escalation.output_name,
        json_schema=None if escalation.json_schema is None else dict(escalation.json_schema),
        attempts=attempts,
        last_output=plain.text(escalation.last_output),
        messages=plain.of(escalation.messages),
        data=plain.of(escalation.data),
        cut=plain.cut,
    )
