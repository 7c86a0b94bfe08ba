"""Bundles and fragments as they lie in the store: a header line, then the final JSON bytes."""

from __future__ import annotations

import msgspec

ROOT_UNIT = ""
"""The unit name of a context's bundle itself; a linked section's unit is named by its path, e.g. `plane`."""

TEXT_UNIT = "?"
"""No unit: among dirty keys, a bundle that stays as it is, but shows a fragment that its text is made from."""

COUNTER_LENGTH = 16


class UnitKey(msgspec.Struct, frozen=True, gc=False, order=True):
    """One thing to assemble and store: the bundle of a root key, or the fragment of a linked section and join value.

    `unit` is ROOT_UNIT or the section's path (`plane`, `order.customer`); `key` is a key text (schemas.keys).
    """

    unit: str
    key: str


class FragmentReference(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a linked section's bytes go: insert the fragment, or the section's empty bytes, at `offset` of the body."""

    offset: int
    unit: str
    key: str | None
    """None when the join value is null: the section is empty."""


class SourceState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The newest change of one source that this bundle holds."""

    version: str
    commit_time_us: int


class RowReference(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row that was rendered. `node` counts the root (0) and the sections, outer before inner, as the spec lists them.

    `key` is the row's key text and `version` its version; of aggregates `key` is the join value whose rows were counted
    (None: there was none), and `version` is empty.
    """

    node: int
    key: str | None
    version: str = ""
    commit_time_us: int = 0


class Meta(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The header beside the counter. `hash` is of the body, hex; `sources` by source name. `tenant` is whose bundle
    this is, where the spec names a column for that (schemas.keys.tenant_text).

    Where the spec names a tokenizer, `tokens` are those of the body by section, without those of sections in it: ""
    is the unit's own part, a linked section's name alone counts where it is referred to. Where the spec keeps lineage,
    `rows` are those of the body, in the order in which they were rendered.
    """

    hash: str
    spec_version: int
    sources: dict[str, SourceState] = {}
    fragments: list[FragmentReference] = []
    tenant: str | None = None
    tokens: dict[str, int] = {}
    rows: list[RowReference] = []


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One stored value. `counter` is the dirty counter read before assembly; a deleted one keeps only its counter."""

    counter: int
    meta: Meta | None
    body: bytes

    @property
    def deleted(self) -> bool:
        return self.meta is None


_META_ENCODER = msgspec.json.Encoder()
_META_DECODER = msgspec.json.Decoder(Meta)


def encode_stored(stored: Stored) -> bytes:
    """`<16 digits> <meta JSON>\\n<body>`; a deleted one is `<16 digits> -`."""
    if stored.meta is None:
        return b"%016d -" % stored.counter
    return b"%016d %b\n%b" % (stored.counter, _META_ENCODER.encode(stored.meta), stored.body)


def decode_stored(value: bytes) -> Stored:
    """Raises ValueError on bytes that `encode_stored` did not write."""
    counter = int(value[:COUNTER_LENGTH])
    if value[COUNTER_LENGTH + 1 : COUNTER_LENGTH + 2] == b"-":
        return Stored(counter, None, b"")
    end = value.index(b"\n", COUNTER_LENGTH)
    try:
        meta = _META_DECODER.decode(value[COUNTER_LENGTH + 1 : end])
    except msgspec.DecodeError as error:
        raise ValueError(f"stored bundle with a broken header: {error}") from error
    return Stored(counter, meta, value[end + 1 :])
