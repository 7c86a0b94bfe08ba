"""Incremental fetch sessions: what a request names, and what every kind of answer does to the session."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v4, FetchRequest_v7, FetchRequest_v11

from pipeline.streams.fetch_session import SessionClient

TOPICS = [("t", [(0, 10, 100), (1, 20, 100)]), ("u", [(0, 30, 100)])]


class Broker:
    """Answers as a broker with sessions does; `replies` are (error code, session id) to come."""

    def __init__(self, *replies: Any, version: Any = FetchRequest_v11) -> None:
        self.replies, self.version, self.seen = list(replies), version, []

    async def send(self, node_id: int, request: Any) -> Any:
        built = request.build(self.version)
        built.encode()
        self.seen.append(built)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        response = self.version.RESPONSE_TYPE()
        response.topics = []
        if self.version.API_VERSION >= 7:
            response.error_code, response.session_id = reply
        return response

    def named(self) -> list[Any]:
        return [
            (built.session_id, built.session_epoch, _places(built.topics), built.forgotten_topics_data)
            for built in self.seen
        ]


def _places(topics: Any) -> dict[tuple[str, int], int]:
    """Fetch offset by partition; before version 9 without the leader's epoch."""
    return {(topic, part[0]): part[-3] for topic, parts in topics for part in parts}


def fetch(topics: Any = TOPICS) -> FetchRequest:
    return FetchRequest(250, 1, 1 << 20, 0, topics)


ALL = {("t", 0): 10, ("t", 1): 20, ("u", 0): 30}


@pytest.mark.parametrize("version", [FetchRequest_v7, FetchRequest_v11])
async def test_a_session_names_only_what_moved_and_forgets_what_is_not_wanted(version: Any) -> None:
    broker = Broker((0, 7), (0, 7), (0, 7), (0, 7), version=version)
    client = SessionClient(broker)
    await client.send(1, fetch())
    await client.send(1, fetch())
    await client.send(1, fetch([("t", [(0, 15, 100)]), ("u", [(0, 30, 100)])]))
    await client.send(1, fetch())
    assert broker.named() == [
        (0, 0, ALL, []),
        (7, 1, {}, []),
        (7, 2, {("t", 0): 15}, [("t", [1])]),
        (7, 3, {("t", 0): 10, ("t", 1): 20}, []),
    ]


@pytest.mark.parametrize("error_code", [70, 71])
async def test_a_session_that_the_broker_lost_is_begun_anew_at_once(error_code: int) -> None:
    broker = Broker((0, 7), (error_code, 0), (0, 8), (0, 8))
    client = SessionClient(broker)
    for _ in range(3):
        await client.send(1, fetch())
    assert broker.named() == [(0, 0, ALL, []), (7, 1, {}, []), (7, 0, ALL, []), (8, 1, {}, [])]


async def test_after_a_failure_everything_is_named_again() -> None:
    broker = Broker((0, 7), KafkaConnectionError(), (0, 9), (0, 9))
    client = SessionClient(broker)
    await client.send(1, fetch())
    with pytest.raises(KafkaConnectionError):
        await client.send(1, fetch())
    await client.send(1, fetch())
    await client.send(1, fetch())
    assert broker.named()[2:] == [(7, 0, ALL, []), (9, 1, {}, [])]


async def test_without_room_for_a_session_every_request_names_everything() -> None:
    broker = Broker((0, 0), (0, 0))
    client = SessionClient(broker)
    await client.send(1, fetch())
    await client.send(1, fetch())
    assert broker.named() == [(0, 0, ALL, []), (0, 0, ALL, [])]


async def test_each_broker_has_a_session_of_its_own() -> None:
    broker = Broker((0, 7), (0, 8), (0, 7))
    client = SessionClient(broker)
    for node in (1, 2, 1):
        await client.send(node, fetch())
    assert [(built.session_id, built.session_epoch) for built in broker.seen] == [(0, 0), (0, 0), (7, 1)]


async def test_an_old_broker_is_asked_as_aiokafka_asks_it() -> None:
    broker = Broker(None, None, version=FetchRequest_v4)
    client = SessionClient(broker)
    for _ in range(2):
        await client.send(1, fetch())
    assert [built.encode() for built in broker.seen] == [fetch().build(FetchRequest_v4).encode()] * 2


async def test_other_requests_go_through() -> None:
    class Plain:
        cluster = "the cluster"

        async def send(self, node_id: int, request: str, **options: Any) -> Any:
            return node_id, request, options

    client = SessionClient(Plain())
    assert client.cluster == "the cluster"
    assert await client.send(3, "metadata", group=1) == (3, "metadata", {"group": 1})
