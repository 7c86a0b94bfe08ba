"""A bundle as a client holds it: the bytes as they are stored, and what can honestly be said about them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec

from pipeline.lookup.answer import Answer, EmbeddingLabel, NotReached, Rung, Status

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Bundle(msgspec.Struct, frozen=True, dict=True, eq=True, repr_omit_defaults=True):
    """One answer to "context for this key"; equal to another that says the same. `data` decodes when it is first asked
    for. What each status promises stands in the README."""

    answer: Answer

    def __repr__(self) -> str:
        told = self.answer
        size = "no bundle" if told.bundle is None else f"{len(told.bundle):,} bytes"
        return f"<Bundle {told.context} {told.key} {told.status}, {size}>"

    @property
    def context(self) -> str:
        return self.answer.context

    @property
    def key(self) -> str:
        return self.answer.key

    @property
    def status(self) -> Status:
        """fresh, stale, partial, fallback or missing."""
        return self.answer.status

    @property
    def fresh(self) -> bool:
        return self.answer.status == "fresh"

    @property
    def missing(self) -> bool:
        """No such bundle, and no default for it."""
        return self.answer.bundle is None

    @property
    def raw(self) -> bytes | None:
        """JSON, as it is stored; None when missing."""
        return self.answer.bundle

    @cached_property
    def data(self) -> Any:
        """The bundle as Python values; None when missing. Raises Poison for JSON that no reader takes."""
        body = self.answer.bundle
        if body is None:
            return None
        from pipeline.text import decode_bundle

        return decode_bundle(body)

    @property
    def as_of(self) -> dict[str, datetime | None]:
        """Per source: all that it committed up to then is in the bundle; None when nobody knows."""
        return {source: _moment(time_us) for source, time_us in self.answer.as_of_us.items()}

    @property
    def age_ms(self) -> Mapping[str, float | None]:
        """Per source, the time between `as_of` and the answer."""
        return self.answer.age_ms

    @property
    def oldest_ms(self) -> float | None:
        """The greatest age of all sources; None when one is not known."""
        ages = [age for age in self.answer.age_ms.values() if age is not None]
        return max(ages, default=None) if len(ages) == len(self.answer.age_ms) else None

    @property
    def sections(self) -> dict[str, datetime | None]:
        """`as_of` per section, by its path with dots."""
        return {path: _moment(time_us) for path, time_us in self.answer.sections.items()}

    @property
    def left_out(self) -> Mapping[str, str]:
        """Path of a section → why it is not in the bundle."""
        return self.answer.left_out

    @property
    def hash(self) -> str | None:
        """Of the bytes, hex; None when missing."""
        return self.answer.hash

    @property
    def id(self) -> str | None:
        """Leads back to these bytes for as long as the context keeps its history; None where it keeps none."""
        return self.answer.id

    @property
    def position(self) -> Mapping[str, str]:
        """Per source, what the answer has seen. Given to a lookup as its `position`, that one sees no less."""
        return self.answer.position

    @property
    def not_reached(self) -> tuple[NotReached, ...]:
        """Positions that were asked for and that the bundle may not hold."""
        return self.answer.not_reached

    @property
    def tokens(self) -> int | None:
        """Of the bundle, where the lookup had a token budget."""
        return self.answer.tokens

    @property
    def embedding(self) -> EmbeddingLabel | None:
        """What is known of its vector; None where the context embeds nothing."""
        return self.answer.embedding

    @property
    def spec_version(self) -> int:
        return self.answer.spec_version

    @property
    def rung(self) -> Rung:
        """Where it came from: near (this process, or the server's), store, replica, last_known or default."""
        return self.answer.rung

    def text(self, template: str) -> str:
        """A Jinja template over `data`, in the sandbox that contexts use; "" when missing. Raises Poison when it
        fails."""
        if self.answer.bundle is None:
            return ""
        from pipeline.text import render_template

        return render_template(template, self.data)


def _moment(time_us: int | None) -> datetime | None:
    return None if time_us is None else _EPOCH + timedelta(microseconds=time_us)
