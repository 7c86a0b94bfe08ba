"""Streams and generations: which partitions of a log hold the writes of a time, and which process reads them. Pure.

A generation is a set of streams that is written to from its time on, until the next one's. With vnodes all tables share
them; with tablets each table has its own. Streams are read by groups: those of one vnode lie on the same replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

_VERSION_MASK = 0xF
_VERSION_1 = 1
_INDEX_SHIFT = 4
_INDEX_MASK = (1 << 22) - 1


class Group(msgspec.Struct, frozen=True):
    """Streams that are read together. `key` names it within its generation, in every process alike."""

    key: str
    streams: tuple[bytes, ...]


def vnode_index(stream: bytes) -> int | None:
    """Of a stream id: 8 bytes of token, then 38 random bits, 22 bits of index, 4 bits of version; None for others."""
    low = int.from_bytes(stream[8:16], "big")
    return (low >> _INDEX_SHIFT) & _INDEX_MASK if low & _VERSION_MASK == _VERSION_1 else None


def vnode_groups(descriptions: Iterable[tuple[int, Iterable[bytes]]]) -> tuple[Group, ...]:
    """`descriptions` are (end of a token range, its streams). By vnode; ids of an old version by range."""
    found: dict[str, list[bytes]] = {}
    for range_end, streams in descriptions:
        for stream in streams:
            index = vnode_index(stream)
            found.setdefault(f"r{range_end}" if index is None else f"v{index}", []).append(stream)
    return tuple(Group(key, tuple(sorted(found[key]))) for key in sorted(found))


def tablet_groups(streams: Iterable[bytes]) -> tuple[Group, ...]:
    """One stream each: tablets move one by one."""
    return tuple(Group(stream.hex(), (stream,)) for stream in sorted(set(streams)))


def shared(groups: Sequence[Group], number: int, of: int) -> tuple[Group, ...]:
    """What falls to one of several processes: every group to exactly one, about as many to each."""
    ordered = sorted(groups, key=lambda group: group.key)
    return tuple(group for place, group in enumerate(ordered) if place % of == number)


def operating(times_ms: Sequence[int], at_us: int) -> int | None:
    """The generation that writes of this time went to; None when it was before the first."""
    return max((time for time in times_ms if time * 1000 <= at_us), default=None)


def following(times_ms: Sequence[int], generation_ms: int) -> int | None:
    """The next generation, None while there is none."""
    return min((time for time in times_ms if time > generation_ms), default=None)
