"""The requests to Kafka behind a sample, batched per broker and coordinator, with the rights to describe and to read.

No group is joined and no topic is made. What one broker does not answer is left out and told; the rest counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IncompatibleBrokerVersion,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.admin import DescribeConfigsRequest, DescribeGroupsRequest, ListGroupsRequest
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.ops.lag.model import GroupSeen, Retention
from pipeline.ops.lag.new_groups import DescribeNewGroups, seen_in
from pipeline.stores.store import Partition

LATEST, EARLIEST = -1, -2
REFUSALS = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
AWAY = (KafkaError, TimeoutError, OSError)
CONSUMERS = ("", "consumer")
"""Types of groups that commit offsets of consumers; Kafka Connect's and others have nothing of that kind."""
IN_FLIGHT = 16
TOPIC_RESOURCE = 2
DESCRIBE_VERSION_MAX = 2


class Cluster:
    """What the last metadata said: brokers, and the leader of every partition (-1: none)."""

    def __init__(self, nodes: list[int], leaders: Mapping[str, Mapping[int, int]]) -> None:
        self.nodes, self.leaders = nodes, leaders
        self.topics = {topic: len(parts) for topic, parts in leaders.items()}

    def leader(self, partition: Partition) -> int:
        return self.leaders.get(partition[0], {}).get(partition[1], -1)


class Brokers:
    """One client; every method may be called again after any error. `problems` grows until it is emptied."""

    def __init__(self, bootstrap_servers: str, timeout_s: float, **security: Any) -> None:
        self._address, self._timeout_s = bootstrap_servers, timeout_s
        self._security = security
        self._client: AIOKafkaClient | None = None
        self._in_flight = asyncio.Semaphore(IN_FLIGHT)
        self.problems: list[str] = []

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def cluster(self) -> Cluster:
        """Raises Retryable when no broker answers and EnvironmentProblem when they refuse us."""
        client = await self._started()
        request = MetadataRequest(None, False)
        for node in [broker.nodeId for broker in client.cluster.brokers()]:
            try:
                answer = await self._send(node, request)
            except AWAY as error:
                self._away(node, error)
                continue
            client.cluster.update_metadata(answer)
            return self._cluster(answer)
        await self.close()
        raise Retryable(f"no broker of Kafka at {self._address} answers")

    async def groups(self, nodes: Iterable[int]) -> dict[int, list[str]]:
        """Names of consumer groups by their coordinator; brokers that do not answer are left out."""
        found = await self._each((node, ListGroupsRequest()) for node in nodes)
        return {
            node: [name for name, kind, *_ in answer.groups if kind in CONSUMERS]
            for node, answer in found
            if self._is_fine(answer.error_code, f"broker {node} lists no groups")
        }

    async def describe(self, groups: Mapping[int, list[str]]) -> dict[str, GroupSeen]:
        """States, members and who reads what, without commits."""
        asked = [(node, _DescribeGroups(names)) for node, names in groups.items() if names]
        found: dict[str, GroupSeen] = {}
        for _, answer in await self._each(asked):
            for code, name, state, _, _, members, *_ in answer.groups:
                if code == 0:
                    found[name] = _group(state, members)
        newer = {
            node: [name for name in names if name in found and not found[name].state] for node, names in groups.items()
        }
        return found | await self._newer(newer)

    async def commits(self, groups: Mapping[int, list[str]]) -> dict[str, dict[Partition, int] | str]:
        """Per group all its committed offsets, or why there are none to see."""
        names = [(node, name) for node, some in groups.items() for name in some]
        answers = await asyncio.gather(*(self._commits(node, name) for node, name in names))
        return {name: answer for (_, name), answer in zip(names, answers, strict=True)}

    async def offsets(self, cluster: Cluster, partitions: Iterable[Partition], which: int) -> dict[Partition, int]:
        """First or end offsets; partitions without a leader that answers are left out."""
        asked = [
            (node, OffsetRequest(-1, 0, _by_topic((p, (p[1], which)) for p in theirs)))
            for node, theirs in self._by_leader(cluster, partitions).items()
        ]
        found: dict[Partition, int] = {}
        refused: set[str] = set()
        for _, answer in await self._each(asked):
            for topic, parts in answer.topics:
                for number, code, _, offset, *_ in parts:
                    if code == 0 and offset >= 0:
                        found[topic, number] = offset
                    elif code != 0:
                        refused.add(f"offsets of {topic}: {for_code(code).__name__}")
        self.problems += sorted(refused)
        return found

    async def fetch(
        self, cluster: Cluster, wanted: Mapping[Partition, int], bytes_max: int
    ) -> dict[Partition, bytes | str]:
        """Batches at these offsets, at most so many bytes each, but a whole batch for the first of a broker; or why
        there are none."""
        asked = [
            (node, FetchRequest(0, 0, bytes_max * len(theirs), 0,
                                _by_topic((p, (p[1], wanted[p], bytes_max)) for p in theirs)))
            for node, theirs in self._by_leader(cluster, wanted).items()
        ]  # fmt: skip
        found: dict[Partition, bytes | str] = {}
        for _, answer in await self._each(asked):
            for topic, parts in answer.topics:
                for number, code, *_, data in parts:
                    found[topic, number] = (data or b"") if code == 0 else for_code(code).__name__
        return found

    async def retentions(self, cluster: Cluster, topics: list[str]) -> dict[str, Retention]:
        """What removes records, by topic; `known` False where we may not ask."""
        if not topics:
            return {}
        names = ["cleanup.policy", "retention.ms"]
        request = DescribeConfigsRequest([(TOPIC_RESOURCE, topic, names) for topic in topics])
        found = dict.fromkeys(topics, Retention())
        for _, answer in await self._each([(cluster.nodes[0], request)]):
            for code, _, _, topic, entries in answer.resources:
                if code == 0:
                    found[topic] = _retention({entry[0]: entry[1] for entry in entries})
        return found

    # ---- below

    async def _newer(self, groups: Mapping[int, list[str]]) -> dict[str, GroupSeen]:
        """Groups that the older request does not know. Brokers without the newer one have none of them."""
        found: dict[str, GroupSeen] = {}
        for node, names in groups.items():
            if names:
                try:
                    found |= seen_in(await self._send(node, DescribeNewGroups(names)))
                except IncompatibleBrokerVersion:
                    continue
                except AWAY as error:
                    self._away(node, error)
        return found

    async def _commits(self, node: int, group: str) -> dict[Partition, int] | str:
        try:
            answer = await self._send(node, OffsetFetchRequest(group, None))
        except AWAY as error:
            return self._away(node, error)
        if answer.error_code:
            return f"its coordinator says {for_code(answer.error_code).__name__}"
        return {
            (topic, number): offset
            for topic, parts in answer.topics
            for number, offset, _, code in parts
            if code == 0 and offset >= 0
        }

    async def _each(self, requests: Iterable[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Answers by node, all asked at once; those that do not come are told in `problems`."""
        asked = list(requests)
        answers = await asyncio.gather(*(self._send(*one) for one in asked), return_exceptions=True)
        found = []
        for (node, _), answer in zip(asked, answers, strict=True):
            if isinstance(answer, AWAY):
                self._away(node, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.append((node, answer))
        return found

    async def _send(self, node: int, request: Any) -> Any:
        client = await self._started()
        async with self._in_flight:
            return await asyncio.wait_for(client.send(node, request), self._timeout_s)

    async def _started(self) -> AIOKafkaClient:
        if self._client is not None:
            return self._client
        client = AIOKafkaClient(
            bootstrap_servers=self._address,
            client_id="ctxpipe-collector",
            request_timeout_ms=int(self._timeout_s * 1000),
            **self._security,
        )
        try:
            await client.bootstrap()
        except REFUSALS as error:
            await client.close()
            raise EnvironmentProblem(
                f"Kafka at {self._address} refuses us: {error!r}; check user and grants"
            ) from error
        except AWAY as error:
            await client.close()
            raise Retryable(f"Kafka at {self._address} does not answer ({error!r})") from error
        self._client = client
        return client

    def _cluster(self, answer: Any) -> Cluster:
        leaders = {
            topic: {number: leader for _, number, leader, *_ in parts}
            for code, topic, _, parts in answer.topics
            if code == 0
        }
        return Cluster([node for node, *_ in answer.brokers], leaders)

    def _by_leader(self, cluster: Cluster, partitions: Iterable[Partition]) -> dict[int, list[Partition]]:
        found: dict[int, list[Partition]] = {}
        for partition in partitions:
            node = cluster.leader(partition)
            if node >= 0:
                found.setdefault(node, []).append(partition)
        return found

    def _away(self, node: int, error: BaseException) -> str:
        problem = f"broker {node} does not answer ({type(error).__name__})"
        if problem not in self.problems:
            self.problems.append(problem)
        return problem

    def _is_fine(self, code: int, what: str) -> bool:
        if code:
            self.problems.append(f"{what}: {for_code(code).__name__}")
        return code == 0


class _DescribeGroups(DescribeGroupsRequest):  # type: ignore[misc]
    """aiokafka 0.14 reads an answer of version 3 by the schema of version 2, and loses all groups but the first."""

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Any:
        lowest, highest = versions[self.API_KEY]
        return super().prepare({**versions, self.API_KEY: (lowest, min(highest, DESCRIBE_VERSION_MAX))})


def _group(state: str, members: Any) -> GroupSeen:
    """Kafka says Dead of groups of the new protocol where it is asked in the old one: then nothing is known."""
    if state == "Dead":
        return GroupSeen("")
    names = frozenset(member_id for member_id, *_ in members)
    if state == "Empty":
        return GroupSeen(state, names, frozenset())
    if state != "Stable":
        return GroupSeen(state, names)
    assigned: set[Partition] = set()
    for *_, assignment in members:
        if assignment:
            decoded = ConsumerProtocolMemberAssignment.decode(assignment)
            assigned.update((topic, number) for topic, numbers in decoded.assignment for number in numbers)
    return GroupSeen(state, names, frozenset(assigned))


def _retention(config: Mapping[str, str | None]) -> Retention:
    text = config.get("retention.ms") or ""
    limit_ms = int(text) if text.lstrip("-").isdecimal() else -1
    return Retention(config.get("cleanup.policy") == "compact", limit_ms / 1000 if limit_ms > 0 else None, known=True)


def _by_topic(items: Iterable[tuple[Partition, Any]]) -> list[tuple[str, list[Any]]]:
    topics: dict[str, list[Any]] = {}
    for (topic, _), item in items:
        topics.setdefault(topic, []).append(item)
    return list(topics.items())
