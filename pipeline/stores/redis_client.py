"""The connection to Redis: bucketed keys, pipelined calls of the store functions, one table of foreign errors."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any
from zlib import crc32

import hiredis
import msgspec
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Fatal, Retryable
from pipeline.core.redis import RedisConfig
from pipeline.stores.redis_login import login_options
from pipeline.stores.redis_wire import RedisWire

Call = tuple[str, list[Any], Sequence[Any]]
"""(function name, keys, arguments)."""

_REMEMBERED_KEYS = 50_000
_SOURCE = resources.files("pipeline.stores").joinpath("functions.lua").read_text()
_SUFFIX = hashlib.sha256(_SOURCE.encode()).hexdigest()[:10]
_LIBRARY = f"#!lua name=ctxpipe_{_SUFFIX}\n" + _SOURCE.replace("@", _SUFFIX)


class RedisSettings(msgspec.Struct, frozen=True):
    """Where Redis is, and which corner of it belongs to this context version. `login`: what the address leaves out."""

    url: str
    context: str
    version: int
    cluster: bool = False
    prefix: str = "ctxpipe"
    buckets: int = 64
    time_to_live_s: int = 0
    retention_s: int = 0
    """Of former bundles; 0: none are kept."""
    timeout_s: float = 5.0
    login: RedisConfig | None = None


class RedisClient:
    """Sends store function calls. Keys are `<prefix>:<context>:v<version>:{<bucket>}:…`, those of bundles have `b:`
    before the bucket; one bucket is one slot."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self.base = f"{settings.prefix}:{settings.context}:v{settings.version}:"
        options: dict[str, Any] = {
            "socket_timeout": settings.timeout_s,
            "socket_connect_timeout": min(2.0, settings.timeout_s),
            "protocol": 2,
            **login_options(settings.login),
        }
        self.connection: Any
        if settings.cluster:
            self.connection = RedisCluster.from_url(settings.url, **options)
        else:
            # A repeated increment or put is harmless, but a retry would hide that another process answers now.
            self.connection = Redis.from_url(settings.url, retry=Retry(NoBackoff(), 0), **options)
        self.in_order = not settings.cluster
        """True: calls that are begun one after the other, in one task or several, are executed in that order."""
        # Keys come again and again (airlines, airports): remembering their bucket is cheaper than the checksum.
        buckets = settings.buckets
        self.bucket = lru_cache(_REMEMBERED_KEYS)(lambda text: crc32(text.encode()) % buckets)
        self.round_trips = 0
        self.commands = 0
        self._wire: RedisWire | None = None

    def key(self, bucket: int, rest: str) -> str:
        return f"{self.base}{{{bucket}}}:{rest}"

    async def call(self, calls: Sequence[Call]) -> list[Any]:
        """All calls in one pipelined round trip, answers in order; loads the functions where a server lacks them.

        A write that met a server without functions is not sent again but raises Retryable: what its caller has begun
        after it may have been executed before it.
        """
        try:
            return await self._pipeline(calls)
        except exceptions.ResponseError as error:
            if "Function not found" not in str(error):
                raise mapped(error) from error
        except (exceptions.RedisError, OSError) as error:
            raise mapped(error) from error
        await self.load_functions()
        if not all(name in _READS for name, _, _ in calls):
            raise Retryable("Redis had lost the store functions; they are loaded again")
        try:
            return await self._pipeline(calls)
        except (exceptions.RedisError, OSError) as error:
            raise mapped(error) from error

    async def _pipeline(self, calls: Sequence[Call]) -> list[Any]:
        if not calls:
            return []
        self.round_trips += 1
        self.commands += len(calls)
        if not self.settings.cluster:
            return await self._send(calls)
        pipeline = self.connection.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*_command(call))
        async with asyncio.timeout(self.settings.timeout_s):
            return list(await pipeline.execute())

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        """Packing by hiredis, because redis-py's own takes more time than Redis does."""
        packed = b"".join([hiredis.pack_command(_command(call)) for call in calls])
        answers = await self.wire().ask(packed, len(calls))
        for answer in answers:
            if isinstance(answer, exceptions.RedisError):
                raise answer
        return answers

    def wire(self) -> RedisWire:
        """The connection that all calls share; not on a cluster."""
        if self._wire is None:
            self._wire = RedisWire(self.connection.connection_pool.make_connection, self.settings.timeout_s)
        return self._wire

    @property
    def connections(self) -> int:
        """How many there have been, one after the other; 0 on a cluster."""
        return 0 if self._wire is None else self._wire.connections

    async def run(self, *command: Any) -> Any:
        """One plain command."""
        try:
            if self.settings.cluster:
                async with asyncio.timeout(self.settings.timeout_s):
                    return await self.connection.execute_command(*command)
            (answer,) = await self.wire().ask(hiredis.pack_command(command), 1)
        except (exceptions.RedisError, OSError) as error:
            raise mapped(error) from error
        if isinstance(answer, exceptions.RedisError):
            raise mapped(answer) from answer
        return answer

    async def load_functions(self) -> None:
        """On every primary; replaces nothing that another release uses, because names carry the text's hash."""
        try:
            # A server that wants a password takes no argument as long as the library from one that has not given it,
            # and says something else of that than that a password is missing.
            await self.connection.ping()
            if self.settings.cluster:
                command = ("FUNCTION LOAD", "REPLACE", _LIBRARY)
                await self.connection.execute_command(*command, target_nodes=RedisCluster.PRIMARIES)
            else:
                await self.connection.execute_command("FUNCTION LOAD", "REPLACE", _LIBRARY)
        except exceptions.NoPermissionError as error:
            await self._refuse_missing_functions(error)
        except (exceptions.RedisError, OSError) as error:
            raise mapped(error) from error

    async def _refuse_missing_functions(self, refused: Exception) -> None:
        """A user that only reads needs none of its own, where a worker has loaded them."""
        try:
            await self.connection.execute_command("FCALL_RO", f"ctx_value_{_SUFFIX}", 0)
        except (exceptions.RedisError, OSError) as error:
            if "Function not found" in str(error):
                text = "Redis lacks the store functions of this release, and this user may not load them. Start a "
                raise EnvironmentProblem(f"{text}worker first, or allow its user +function|load.") from refused
            if isinstance(error, exceptions.NoPermissionError) or not isinstance(error, exceptions.ResponseError):
                raise mapped(error) from error

    async def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
        await self.connection.aclose()


_READS = frozenset(("rows", "value", "view", "members", "fetch", "stones", "due", "states"))


def _command(call: Call) -> tuple[Any, ...]:
    name, keys, arguments = call
    verb = "FCALL_RO" if name in _READS else "FCALL"
    return (verb, f"ctx_{name}_{_SUFFIX}", len(keys), *keys, *arguments)


def mapped(error: Exception) -> CtxpipeError:
    """The one table of Redis errors: what each means for the loop that met it."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text or "WRONG_VERSION_NUMBER" in text:
        return EnvironmentProblem(f"Redis and we don't trust each other: {text}. Check redis.url and redis.ca.")
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.NoPermissionError):
        return EnvironmentProblem(
            f"Redis refuses the login or a command: {text}. Check redis.url and the user's rights."
        )
    if isinstance(error, exceptions.ResponseError):
        temporary = (
            "LOADING",
            "READONLY",
            "CLUSTERDOWN",
            "MASTERDOWN",
            "TRYAGAIN",
            "OOM",
            "BUSY",
            "MISCONF",
            "NOREPLICAS",
        )
        if isinstance(error, exceptions.ReadOnlyError) or text.upper().startswith(temporary):
            return Retryable(f"Redis can't take writes now: {text}")
        if "WRONGPASS" in text or "NOAUTH" in text or "AUTH" in text[:20]:
            return EnvironmentProblem(f"Redis refuses the login: {text}. Check the password in redis.url.")
        return Fatal(f"Redis refuses a store call: {text}")
    return Retryable(f"Redis does not answer: {text}")
