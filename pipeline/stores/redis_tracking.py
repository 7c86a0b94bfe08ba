"""Redis tells this process of every bundle that changes: the near cache stays true, and it is known since when.

One connection of its own, in RESP3, with `CLIENT TRACKING` in broadcast mode. Whatever fills the near cache is read
over this connection, too (near_reader): both then come from one server, also while a failover leaves two of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from redis import exceptions

from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Retryable
from pipeline.stores.near_cache import NearCache
from pipeline.stores.redis_bundles import RedisBundles, decode_applied
from pipeline.stores.redis_client import mapped
from pipeline.stores.redis_wire import RedisWire, packed
from pipeline.stores.store import AppliedPosition, Partition
from schemas.bundle import UnitKey

PAUSE_S = 0.01
ANSWER_S_MAX = 0.5
BACKOFF_S, BACKOFF_S_MAX = 0.05, 1.0
REFUSED_PAUSE_S = 30.0
"""A server that refuses tracking may allow it some day."""

_LOG = logging.getLogger("ctxpipe.near_cache")
_PING = packed("PING")


class Observer(Protocol):
    """Wants to know the applied positions that all that is in the near cache holds (lookup.applied_watch); none when
    the connection is lost, because another server may answer then."""

    def begin(self) -> int: ...

    def observe(self, began: int, positions: Mapping[Partition, AppliedPosition]) -> None: ...


class RedisTracking:
    """Keeps `near` true as long as `run` runs. Belongs to one event loop.

    Not for Redis Cluster, where every node would have to be listened to: `run` is simply not started there, and the
    near cache stays empty. SWAPDB is the one command that changes bundles and that Redis tells nobody of. A key that
    expires is told of when Redis deletes it, a moment later where nobody reads it: its bundle is as true as before.
    """

    def __init__(
        self,
        bundles: RedisBundles,
        near: NearCache,
        observers: Sequence[Observer] = (),
        pause_s: float = PAUSE_S,
        answer_s_max: float = ANSWER_S_MAX,
    ) -> None:
        """`pause_s` between two confirmations. A server that takes longer than `answer_s_max` for an answer is left."""
        self._bundles, self._near, self._observers = bundles, near, tuple(observers)
        self._pause_s, self._answer_s_max = pause_s, answer_s_max
        self._applied = packed("HGETALL", bundles.applied_key)
        self._answer: object = None
        self._positions: Mapping[Partition, AppliedPosition] = {}
        self._told = ""
        self.wire: RedisWire | None = None
        """What fills the near cache is read over it: the server on which all is true that the observers were told last.
        None while nothing tells of changes."""
        self.losses = 0
        """Of connections on which something had been confirmed."""

    async def run(self) -> None:
        """Until it is cancelled. Connects again whenever the connection is lost."""
        backoff_s = BACKOFF_S
        try:
            while True:
                losses = self.losses
                try:
                    await self._follow()
                except Retryable as error:
                    if self.losses > losses:
                        backoff_s = BACKOFF_S
                    self._tell(f"nothing tells of changes of bundles, lookups ask Redis: {error}")
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
                except CtxpipeError as error:
                    self._forget()
                    self._tell(f"the near cache stays off, lookups ask Redis: {error}")
                    await asyncio.sleep(REFUSED_PAUSE_S)
        finally:
            self._forget()

    async def _follow(self) -> None:
        """One connection, until it is lost. Raises Retryable then, other CtxpipeErrors for what Redis refuses."""
        make = self._bundles.client.connection.connection_pool.make_connection
        wire = RedisWire(make, self._answer_s_max, self._pushed)
        try:
            await self._begin(wire)
            self._near.flush()
            while True:
                if await self._confirm(wire):
                    self.wire = wire
                await asyncio.sleep(self._pause_s)
        except exceptions.TimeoutError as error:
            # All that is in the near cache was so at confirmed_at_s, which only grows older.
            raise mapped(error) from error
        except (exceptions.RedisError, OSError) as error:
            self._forget()
            raise mapped(error) from error
        finally:
            self.losses += self.wire is not None
            self.wire = None
            wire.close()

    async def _begin(self, wire: RedisWire) -> None:
        tracking = packed("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._bundles.prefix)
        for answer in await wire.ask(packed("HELLO", "3") + tracking, 2):
            if isinstance(answer, exceptions.RedisError):
                raise _refused(answer) from answer

    async def _confirm(self, wire: RedisWire) -> bool:
        """Reads the applied positions, and makes sure that what led to them has been told of. False while the server is
        busy with a script or loads its data: what was confirmed before stays true, and grows older.

        Redis tells of a write to tracking connections at the end of the turn of its event loop that carried it out
        (trackingBroadcastInvalidationMessages in beforeSleep), so the answer of a read in that turn stands before it on
        the connection, and may reach us without it. A question that is sent when that answer is here is read in a later
        turn: its answer stands behind all that was told of writes before the read.
        """
        sent_at_s = asyncio.get_running_loop().time()
        began = [observer.begin() for observer in self._observers]
        (applied,) = await wire.ask(self._applied, 1)
        (pong,) = await wire.ask(_PING, 1)
        for answer in (applied, pong):
            if isinstance(answer, exceptions.RedisError):
                error = mapped(answer)
                if isinstance(error, Retryable):
                    return False
                raise _refused(answer) from answer
        if applied != self._answer:
            self._answer, self._positions = applied, decode_applied(applied)
        self._near.confirmed_at_s = sent_at_s
        self._observe(began, self._positions)
        self._tell("")
        return True

    def _pushed(self, message: list[Any]) -> None:
        """In the order in which Redis sent it, between the answers."""
        if not message or message[0] != b"invalidate":
            return
        if message[1] is None:  # FLUSHALL, FLUSHDB, or a replica that begins anew
            self._near.flush()
            return
        names: list[UnitKey] = []
        for name in message[1]:
            try:
                names.append(self._bundles.unit_key(name))
            except ValueError:
                continue  # not a name of ours, so nobody reads it
        self._near.invalidate(names)

    def _forget(self) -> None:
        """The next server may know less than this one did."""
        if self._near.confirmed_at_s is not None:
            self._near.confirmed_at_s = None
            self._near.flush()
            self._observe([observer.begin() for observer in self._observers], {})

    def _observe(self, began: Sequence[int], positions: Mapping[Partition, AppliedPosition]) -> None:
        for observer, number in zip(self._observers, began, strict=True):
            observer.observe(number, positions)

    def _tell(self, problem: str) -> None:
        """Each problem once, until it is over."""
        if problem == self._told:
            return
        self._told = problem
        if problem:
            _LOG.warning("%s: %s", self._bundles.prefix, problem)
        else:
            _LOG.info("%s: Redis tells of changes of bundles again", self._bundles.prefix)


def _refused(answer: exceptions.RedisError) -> CtxpipeError:
    error = mapped(answer)
    if isinstance(error, Retryable):
        return error
    return EnvironmentProblem(
        f"Redis refuses to tell of changes: {answer}. It takes Redis 6 or newer, and a user who may "
        "+hello +client|tracking +hgetall +get +mget +ping (Redis 6: +client)."
    )
