"""Incremental fetch sessions (KIP-227) for aiokafka's fetcher, which names every partition in every request.

A worker reads tables × partitions, and most of them are quiet: naming forty partitions took more time than the records
that came back. In a session the broker remembers them; a request then names those that moved on, an answer those that
have something.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiokafka.protocol.fetch import FetchRequest

from pipeline.streams.lanes import Partition

_SESSION_VERSION = 7
_NOT_IN_SESSION = (70, 71)
"""FETCH_SESSION_ID_NOT_FOUND (the broker restarted, or gave the place to others), INVALID_FETCH_SESSION_EPOCH."""
_EPOCH_MAX = 2**31 - 1

Wanted = dict[Partition, tuple[int, int]]
"""(offset, greatest number of bytes) per partition."""


class FetchSession:
    """What one broker knows of our session. `request` before sending, `answered` or `broken` after it; one request at a
    time."""

    def __init__(self) -> None:
        self.session_id = 0
        self.epoch = 0
        self._known: Wanted = {}
        self._asked: Wanted = {}

    def request(self, wanted: Wanted) -> tuple[Wanted, list[Partition]]:
        """(partitions to name, partitions to forget)."""
        self._asked = wanted
        if self.epoch == 0:
            return wanted, []
        known = self._known
        named = {partition: place for partition, place in wanted.items() if known.get(partition) != place}
        return named, [partition for partition in known if partition not in wanted]

    def answered(self, session_id: int) -> None:
        """The broker carried the request out. A session id of 0: it has no room for a session."""
        self._known = self._asked
        self.session_id = session_id
        self.epoch = 0 if session_id == 0 else 1 if self.epoch == _EPOCH_MAX else self.epoch + 1

    def broken(self) -> None:
        """Nobody knows whether the broker carried it out: the next request names everything, and ends the session that
        may be there."""
        self.epoch = 0


class SessionClient:
    """aiokafka's client as the fetcher uses it: fetch requests go by session, everything else goes through."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._sessions: dict[Any, FetchSession] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: Any, request: Any, **options: Any) -> Any:
        """As the client's. A session that the broker does not know any more is begun anew, once."""
        if not isinstance(request, FetchRequest):
            return await self._client.send(node_id, request, **options)
        response = await self._fetch(node_id, request, options)
        if getattr(response, "error_code", 0) in _NOT_IN_SESSION:
            response = await self._fetch(node_id, request, options)
        return response

    async def _fetch(self, node_id: Any, request: FetchRequest, options: dict[str, Any]) -> Any:
        session = self._sessions.setdefault(node_id, FetchSession())
        wanted = {(topic, number): (offset, size) for topic, parts in request.topics for number, offset, size in parts}
        carried_out = False
        try:
            response = await self._client.send(node_id, _SessionRequest(request, session, wanted), **options)
            carried_out = getattr(response, "error_code", 0) == 0
        finally:
            if not carried_out:
                session.broken()
        if carried_out and response.API_VERSION >= _SESSION_VERSION:
            session.answered(response.session_id)
        return response


class _SessionRequest(FetchRequest):  # type: ignore[misc]
    """A fetch request that names only what the session does not know."""

    def __init__(self, request: Any, session: FetchSession, wanted: Wanted) -> None:
        super().__init__(
            request._max_wait_ms,
            request._min_bytes,
            request._max_bytes,
            request._isolation_level,
            request.topics,
            rack_id=request._rack_id,
        )
        self._session, self._wanted = session, wanted

    def build(self, request_struct_class: Any) -> Any:
        """Called with the version that this broker speaks; before version 7 there are no sessions."""
        if request_struct_class.API_VERSION < _SESSION_VERSION:
            return super().build(request_struct_class)
        session, all_topics = self._session, self.topics
        named, forgotten = session.request(self._wanted)
        self._topics = _by_topic((topic, (number, *place)) for (topic, number), place in named.items())
        try:
            built: Any = super().build(request_struct_class)
        finally:
            self._topics = all_topics
        built.session_id, built.session_epoch = session.session_id, session.epoch
        built.forgotten_topics_data = _by_topic(forgotten)
        return built


def _by_topic(items: Iterable[tuple[str, Any]]) -> list[tuple[str, list[Any]]]:
    topics: dict[str, list[Any]] = {}
    for topic, item in items:
        topics.setdefault(topic, []).append(item)
    return list(topics.items())
