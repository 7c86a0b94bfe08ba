"""The client of orchestrators, for asyncio: one interface, over HTTP or straight from Redis, with the same answers.

`blocking.py` is made from this file, so that both have the same methods; see `mirror.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from pipeline.client import tools
from pipeline.client.asking import Paths, Position, asked, check_context, check_keys
from pipeline.client.bundle import Bundle
from pipeline.client.errors import BadRequest, NotOffered
from pipeline.client.over_http import HttpMode
from pipeline.client.results import ContextInfo, Found, PastBundle
from pipeline.core.errors import ConfigError
from pipeline.core.redis import RedisConfig
from pipeline.lookup.options import LookupOptions
from schemas.errors import DecodeError
from schemas.position import token_of_lsn, token_of_write_time

ID_CHARACTERS_MAX = 8_192


class Mode(Protocol):
    """Where answers come from. Called from one event loop, many times at once; raises ClientError."""

    async def get(self, context: str, key: str, options: LookupOptions) -> Bundle: ...

    async def get_many(self, context: str, keys: Sequence[str], options: LookupOptions) -> list[Bundle]: ...

    async def by_id(self, context: str, bundle_id: str) -> PastBundle | None: ...

    async def contexts(self) -> list[ContextInfo]: ...

    async def close(self) -> None: ...


@runtime_checkable
class Searching(Protocol):
    """A Mode that answers searches too. `question` is the body of the HTTP interface without its budget."""

    async def search(self, context: str, question: dict[str, Any], budget_ms: float | None) -> Found: ...


class AsyncClient:
    """Make one, keep it, close it (or use it in `async with`): it connects with the first call and keeps connections.

    Safe for concurrent calls in one event loop. Every call may raise UnknownContext, BadRequest, NotAllowed,
    NotOffered, Unavailable and DeadlineExceeded; see `pipeline.client.errors`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        token: str | None = None,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        timeout_s: float = 10.0,
        connections_max: int = 100,
        mode: Mode | None = None,
    ) -> None:
        """Of a running `ctxpipe serve` at http(s)://host:port. `api_key` is one of `ctxpipe key`, else
        CTXPIPE_API_KEY of the environment, or the file that CTXPIPE_API_KEY_FILE names; `token` a JSON Web Token
        instead. `ca`, `certificate` and `key` are PEM files for https. `timeout_s` is for calls that name no budget.

        Raises ConfigError for an address or files that can't be used, EnvironmentProblem where a package is missing.
        """
        self._mode = mode or HttpMode(url, api_key, token, ca, certificate, key, timeout_s, connections_max)

    @classmethod
    def direct(
        cls,
        url: str | None = None,
        *,
        contexts: Sequence[str] | None = None,
        config: str | None = None,
        username: str | None = None,
        password: str | None = None,
        ca: str | None = None,
        prefix: str = "ctxpipe",
        cluster: bool = False,
    ) -> AsyncClient:
        """Straight from Redis, with the lookup service in this process. Either `url` (redis://host:port/0, rediss://
        with TLS) and the names of the `contexts`, or `config`, the path of a ctxpipe.yaml, of which `contexts` may name
        some. A deployment whose topics are named by others needs `config` where lookups give positions.

        Raises ConfigError for what can't be used.
        """
        from pipeline.client.from_redis import DirectMode, places_of_file, places_of_redis

        if config is not None:
            if url is not None:
                raise ConfigError(["give an address or 'config', which has one, not both"])
            return cls("", mode=DirectMode(places_of_file(config, contexts)))
        if url is None or not contexts:
            raise ConfigError(["give an address and the names of 'contexts', or 'config', the path of a ctxpipe.yaml"])
        for name in contexts:
            check_context(name)
        redis = _redis(url=url, username=username, password=password, ca=ca, prefix=prefix, cluster=cluster)
        return cls("", mode=DirectMode(places_of_redis(redis, contexts)))

    async def get(
        self,
        context: str,
        key: str,
        *,
        budget_ms: float | None = None,
        max_age_ms: float | None = None,
        position: Position = None,
        token_budget: int | None = None,
        sections: Paths = None,
        fields: Paths = None,
    ) -> Bundle:
        """The bundle of one key; several key columns are joined by |, a | inside one is %7C. Missing is an answer.

        `budget_ms`: how long it may take, else as the context says. `max_age_ms`: up to which age it is fresh.
        `position`: what it must have seen, a token, several, or `position` of another bundle; it waits for that inside
        the budget, else the answer is stale and names it in `not_reached`. `token_budget`: sections are left out until
        the rest fits. `sections`, `fields`: only these paths.
        """
        options = asked(budget_ms, max_age_ms, position, token_budget, sections, fields)
        check_context(context)
        check_keys((key,))
        return await self._mode.get(context, key, options)

    async def get_many(
        self,
        context: str,
        keys: Sequence[str],
        *,
        budget_ms: float | None = None,
        max_age_ms: float | None = None,
        position: Position = None,
        token_budget: int | None = None,
        sections: Paths = None,
        fields: Paths = None,
    ) -> list[Bundle]:
        """One bundle per key, in order, at most 1,000; all from one version of the context. See `get`."""
        options = asked(budget_ms, max_age_ms, position, token_budget, sections, fields)
        check_context(context)
        check_keys(keys)
        return await self._mode.get_many(context, keys, options)

    async def search(
        self,
        context: str,
        text: str | None = None,
        *,
        vector: Sequence[float] | None = None,
        key: str | None = None,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        mode: str = "auto",
        space: str | None = None,
        bundles: bool = True,
        budget_ms: float | None = None,
        position: Position = None,
    ) -> Found:
        """The bundles nearest to one of `text`, `vector` and `key` ("more like this"). `filter` as the HTTP interface
        takes it, {"year": {"lt": 1990}}; `mode` auto, vector, lexical or hybrid; `bundles` False leaves their bytes
        out. Over HTTP only: an index is too large for every process to keep.
        """
        options = asked(budget_ms, None, position, None, None, None)
        check_context(context)
        if not isinstance(self._mode, Searching):
            raise NotOffered("searches need a server: AsyncClient(url) of a running `ctxpipe serve`")
        question: dict[str, Any] = {"k": k, "mode": mode, "bundles": bundles}
        given = {"text": text, "vector": None if vector is None else list(vector), "key": key, "space": space}
        question |= {name: value for name, value in given.items() if value is not None}
        question |= {} if filter is None else {"filter": dict(filter)}
        question |= {} if min_score is None else {"min_score": min_score}
        question |= {"position": list(options.positions)} if options.positions else {}
        return await self._mode.search(context, question, options.budget_ms)

    async def by_id(self, context: str, bundle_id: str) -> PastBundle | None:
        """What the answer with this `id` held, byte for byte; None where that is not kept (any more)."""
        check_context(context)
        if not isinstance(bundle_id, str) or not bundle_id.isascii() or len(bundle_id) > ID_CHARACTERS_MAX:
            raise BadRequest(["that is no bundle id; take it from an answer"])
        return await self._mode.by_id(context, bundle_id)

    async def contexts(self) -> list[ContextInfo]:
        """Those that this credential, or this client, may read."""
        return await self._mode.contexts()

    async def tools(self) -> list[dict[str, Any]]:
        """The contexts as functions for a model, in the strict form of OpenAI's interface; see `call_tool`."""
        return tools.tool_schemas(await self.contexts())

    async def call_tool(self, name: str, arguments: str, *, budget_ms: float | None = None) -> str:
        """What a model gets to read for a call of one of `tools`: JSON. A call that makes no sense is answered with
        what is wrong with it, and so is a store that is away; nothing is raised for either."""
        return await tools.answer_call(self, name, arguments, budget_ms)

    @staticmethod
    def position(
        source: str, *, lsn: str | int | None = None, write_time: datetime | int | None = None, cluster: str = ""
    ) -> str:
        """A token for everything that `source` committed up to a write, for `get`, `get_many` and `search`.

        Of Postgres: `lsn` is what pg_current_wal_insert_lsn() gives after the commit (16/B374D848), `cluster` the
        system identifier of the server, so that another's is refused. Of Cassandra and Scylla: `write_time` is when the
        driver had confirmed the write, a datetime with a zone or microseconds since 1970 UTC. Raises BadRequest.
        """
        if (lsn is None) == (write_time is None):
            raise BadRequest(["give one of lsn (Postgres) and write_time (Cassandra, Scylla)"])
        if lsn is not None:
            try:
                return token_of_lsn(source, lsn, cluster)
            except DecodeError as error:
                raise BadRequest([str(error)]) from None
        return token_of_write_time(source, _microseconds(write_time))

    async def close(self) -> None:
        """Ends its connections; calls on their way fail."""
        await self._mode.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


def _microseconds(moment: datetime | int | None) -> int:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise BadRequest(["write_time has no zone; give a datetime with one, e.g. datetime.now(UTC)"])
        return round(moment.timestamp() * 1_000_000)
    if not isinstance(moment, int) or not 0 <= moment < 1 << 63:
        raise BadRequest(["write_time is a datetime or whole microseconds since 1970 UTC"])
    return moment


def _redis(**given: Any) -> RedisConfig:
    """Raises ConfigError."""
    from pydantic import ValidationError

    try:
        return RedisConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError([str(one["msg"]).removeprefix("Value error, ") for one in error.errors()]) from None
