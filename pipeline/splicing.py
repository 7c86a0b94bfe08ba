"""Bundle and fragments → the final bytes of an answer, without decoding any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.bundle import FragmentReference, Stored


def splice(
    body: bytes,
    references: Sequence[FragmentReference],
    fragments: Mapping[tuple[str, str], Stored],
    empty: Mapping[str, bytes],
) -> bytes:
    """`body` with each linked section's bytes at its offset: the fragment's, or the unit's empty ones without it.

    `references` are in ascending order of offset, as they are stored; `empty` has every unit of the context.
    """
    if not references:
        return body
    parts = []
    position = 0
    for reference in references:
        parts.append(body[position : reference.offset])
        position = reference.offset
        fragment = None if reference.key is None else fragments.get((reference.unit, reference.key))
        parts.append(empty[reference.unit] if fragment is None or fragment.deleted else fragment.body)
    parts.append(body[position:])
    return b"".join(parts)
