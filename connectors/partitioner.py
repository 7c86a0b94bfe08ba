"""Which partition a key goes to: murmur2 as Kafka's Java client and aiokafka compute it, made fast for short keys."""

from __future__ import annotations

import struct

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995
_WORDS = [struct.Struct(f"<{count}I").unpack_from for count in range(64)]


def partition_of(key: bytes, partitions: int) -> int:
    """0 ≤ result < partitions; the default partitioner of Kafka's clients."""
    length = len(key)
    count = length >> 2
    words = _WORDS[count](key) if count < 64 else struct.unpack_from(f"<{count}I", key)
    h = 0x9747B28C ^ length
    for word in words:
        k = (word * _M) & _MASK
        h = ((h * _M) ^ ((k ^ (k >> 24)) * _M)) & _MASK
    rest = length & 3
    if rest:
        h = ((h ^ int.from_bytes(key[length - rest :], "little")) * _M) & _MASK
    h = ((h ^ (h >> 13)) * _M) & _MASK
    return ((h ^ (h >> 15)) & 0x7FFFFFFF) % partitions
