"""Groups of Kafka's newer protocol (KIP-848), which the request for older ones says nothing of: the request for them,
in the words of aiokafka's structs, which do not have it."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from pipeline.ops.lag.model import GroupSeen

API_KEY = 69
_TEXT = CompactString("utf-8")


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


_ASSIGNMENT = Schema(
    (
        "topic_partitions",
        CompactArray(
            ("topic_id", _Uuid), ("topic", _TEXT), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)
        ),
    ),
    ("tags", TaggedFields),
)


class _Response(Response):  # type: ignore[misc]
    API_KEY = API_KEY
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            CompactArray(
                ("error_code", Int16),
                ("error_message", _TEXT),
                ("group", _TEXT),
                ("state", _TEXT),
                ("group_epoch", Int32),
                ("assignment_epoch", Int32),
                ("assignor", _TEXT),
                (
                    "members",
                    CompactArray(
                        ("member_id", _TEXT),
                        ("instance_id", _TEXT),
                        ("rack_id", _TEXT),
                        ("member_epoch", Int32),
                        ("client_id", _TEXT),
                        ("client_host", _TEXT),
                        ("subscribed_topics", CompactArray(_TEXT)),
                        ("subscribed_regex", _TEXT),
                        ("assignment", _ASSIGNMENT),
                        ("target", _ASSIGNMENT),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Request(RequestStruct):  # type: ignore[misc]
    API_KEY = API_KEY
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(("groups", CompactArray(_TEXT)), ("authorized_operations", Boolean), ("tags", TaggedFields))


class DescribeNewGroups(Request[_Request]):  # type: ignore[misc]
    """Raises IncompatibleBrokerVersion when it is sent to brokers that have no such groups."""

    API_KEY = API_KEY

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: type[_Request]) -> Any:
        return request_struct_class(self._groups, False, {})


def seen_in(answer: Any) -> dict[str, GroupSeen]:
    """Groups that answered, without commits."""
    found: dict[str, GroupSeen] = {}
    for code, _, name, state, _, _, _, members, *_ in answer.groups:
        if code != 0:
            continue
        assigned = {
            (topic, number)
            for member in members
            for _, topic, numbers, _ in member[8][0]
            for number in numbers
        }  # fmt: skip
        found[name] = GroupSeen(state, frozenset(member[0] for member in members), frozenset(assigned))
    return found
