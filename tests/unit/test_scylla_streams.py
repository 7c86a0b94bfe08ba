"""Streams, groups and sharing of the Scylla source; generations that the log writer makes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.scylla.log_tables import new_generation
from connectors.scylla.streams import Group, following, operating, shared, tablet_groups, vnode_groups, vnode_index


def stream(index: int, version: int = 1, token: int = 7, noise: int = 0) -> bytes:
    return token.to_bytes(8, "big", signed=True) + (noise << 26 | index << 4 | version).to_bytes(8, "big")


def test_the_vnode_of_a_stream() -> None:
    assert vnode_index(stream(0)) == 0
    assert vnode_index(stream((1 << 22) - 1, noise=(1 << 38) - 1)) == (1 << 22) - 1
    assert vnode_index(stream(5, version=0)) is None, "an id of a version that says nothing of vnodes"


def test_streams_of_a_vnode_are_read_together() -> None:
    one, two, three = stream(3, noise=1), stream(3, noise=2), stream(4)
    groups = vnode_groups([(10, [two]), (20, [three, one])])
    assert groups == (Group("v3", (one, two)), Group("v4", (three,)))
    old = vnode_groups([(10, [stream(0, version=0, noise=9)]), (20, [stream(0, version=0)])])
    assert [group.key for group in old] == ["r10", "r20"]


def test_tablets_are_read_one_by_one() -> None:
    groups = tablet_groups([stream(2), stream(1), stream(2)])
    assert [group.streams for group in groups] == [(stream(1),), (stream(2),)]


@given(st.sets(st.integers(0, 10_000), max_size=60), st.integers(1, 7), st.randoms())
def test_every_group_falls_to_exactly_one_process(indexes: set[int], of: int, shuffle: random.Random) -> None:
    groups = [Group(f"v{index}", (stream(index),)) for index in indexes]
    parts = []
    for number in range(of):
        shuffle.shuffle(groups)  # each process may have read them in another order
        parts.append(shared(groups, number, of))
    keys = [group.key for part in parts for group in part]
    assert sorted(keys) == sorted(group.key for group in groups)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("at_us", "expected"), [(9_999, None), (10_000, 10), (19_999, 10), (20_000, 20), (99_000, 20)])
def test_the_generation_of_a_time(at_us: int, expected: int | None) -> None:
    assert operating([20, 10], at_us) == expected


def test_the_next_generation() -> None:
    assert following([30, 10, 20], 10) == 20 and following([10, 20], 20) is None


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_every_token_has_a_stream_in_a_made_generation(token: int, vnodes: int, shards: int, seed: int) -> None:
    made = new_generation(1, vnodes, shards, random.Random(seed))
    groups = vnode_groups(made.vnodes)
    assert len(groups) == vnodes and all(len(group.streams) == shards for group in groups)
    assert made.stream_of(token) in {found for group in groups for found in group.streams}
