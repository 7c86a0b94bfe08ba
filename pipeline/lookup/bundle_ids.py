"""A bundle id: what an answer was put together from, as text that leads back to its bytes while history is kept.

It opens nothing by itself: whoever brings one sees what they may see. Pure.
"""

from __future__ import annotations

import base64

import msgspec

from pipeline.core.errors import CtxpipeError
from pipeline.lookup.answer import Answer
from pipeline.lookup.options import LookupOptions, option_mistakes
from pipeline.stores.store import Fetched
from schemas.bundle import Meta

ID_CHARACTERS_MAX = 8192
"""A bundle of more parts than that has none."""
HASH_BYTES = 8
_VERSION = b"\x01"
_COUNTER_MAX = 10**16 - 1
_SPEC_VERSION_MAX = 999_999_999


class BadId(CtxpipeError):
    """No bundle id; the text is fit for the caller."""


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """What made less of a bundle's bytes, in this order: fields that the credential shows, parts that were asked for, a
    token budget. None: nothing did."""

    allowed: tuple[str, ...] | None = None
    sections: tuple[str, ...] | None = None
    fields: tuple[str, ...] | None = None
    token_budget: int | None = None

    @property
    def options(self) -> LookupOptions:
        return LookupOptions(sections=self.sections, fields=self.fields, token_budget=self.token_budget)


WHOLE = Shape()


class BundleId(msgspec.Struct, frozen=True, array_like=True):
    """`fragments`, in the order in which the bundle refers to them, each once: the counter less the bundle's own; None
    for one that did not exist, False for one that came too late. `digest` is the beginning of the answer's hash."""

    spec_version: int
    key: str
    counter: int
    fragments: tuple[int | bool | None, ...]
    digest: bytes
    shape: Shape = WHOLE

    def counter_of(self, number: int) -> int | None:
        """Of the fragment at this place; None where there is none to be read."""
        delta = self.fragments[number]
        return None if delta is None or delta is False else self.counter + delta


_DECODER = msgspec.msgpack.Decoder(BundleId)


def id_of(key: str, fetched: Fetched, options: LookupOptions, answer: Answer) -> str | None:
    """Of an answer made from `fetched` with `options`; `key` is the text that bundles are named by
    (schemas.keys.root_key_texts). None without a bundle, and where it would be longer than ID_CHARACTERS_MAX."""
    root = fetched.bundle
    if root is None or root.meta is None or answer.hash is None:
        return None
    fragments = tuple([_delta(fetched, place, root.counter) for place in places_of(root.meta)])
    shape = shape_of(answer.context, options)
    digest = bytes.fromhex(answer.hash)[:HASH_BYTES]
    text = text_of(BundleId(root.meta.spec_version, key, root.counter, fragments, digest, shape))
    return text if len(text) <= ID_CHARACTERS_MAX else None


def shape_of(context: str, options: LookupOptions) -> Shape:
    """What these options make less of a bundle of this context."""
    principal = options.principal
    allowed = None if principal is None else principal.fields.get(context)
    return Shape(allowed, options.sections, options.fields, options.token_budget)


def text_of(bundle_id: BundleId) -> str:
    """base64url without padding: a version byte, then MessagePack; a bundle that is whole says nothing of its shape."""
    fields = list(msgspec.structs.astuple(bundle_id))
    if bundle_id.shape == WHOLE:
        del fields[-1]
    return base64.urlsafe_b64encode(_VERSION + msgspec.msgpack.encode(fields)).decode().rstrip("=")


def read_id(text: str) -> BundleId:
    """Raises BadId."""
    broken = BadId(f"{text[:40]!r} is no bundle id; take it from the id of an answer")
    if not text or len(text) > ID_CHARACTERS_MAX:
        raise broken
    try:
        content = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if content[:1] != _VERSION:
            raise broken
        found = _DECODER.decode(content[1:])
        same = text_of(found) == text
    except (ValueError, msgspec.DecodeError, RecursionError):  # of base64, of characters and of MessagePack
        raise broken from None
    if not same or not _plausible(found):
        raise broken
    return found


def places_of(meta: Meta) -> list[tuple[str, str]]:
    """(unit, key) of the fragments that a bundle refers to, each once, in order."""
    return list({(one.unit, one.key): None for one in meta.fragments if one.key is not None})


def _delta(fetched: Fetched, place: tuple[str, str], counter: int) -> int | bool | None:
    if place in fetched.late:
        return False
    fragment = fetched.fragments.get(place)
    return None if fragment is None else fragment.counter - counter


def _plausible(found: BundleId) -> bool:
    counters = [found.counter, *(found.counter + delta for delta in found.fragments if delta is not None)]
    return (
        1 <= found.spec_version <= _SPEC_VERSION_MAX
        and len(found.digest) == HASH_BYTES
        and True not in [delta for delta in found.fragments if isinstance(delta, bool)]
        and all(0 <= counter <= _COUNTER_MAX for counter in counters)
        and not option_mistakes(found.shape.options)
    )
