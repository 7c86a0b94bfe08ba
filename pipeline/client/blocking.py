"""The client for code without an event loop. Made from asynchronous.py by mirror.py: change it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.client.asking import Paths, Position
from pipeline.client.asynchronous import AsyncClient, Mode
from pipeline.client.bundle import Bundle
from pipeline.client.portal import Portal
from pipeline.client.results import ContextInfo, Found, PastBundle


class Client:
    """AsyncClient for code without an event loop: the same calls, answers and errors, safe for many threads at once.

    Make one, keep it, close it (or use it in `with`). Its connections live in a thread of its own; don't call it from
    a coroutine, whose loop would stand still meanwhile.
    """

    _client: AsyncClient
    _portal: Portal

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
        self._client = AsyncClient(
            url,
            api_key=api_key,
            token=token,
            ca=ca,
            certificate=certificate,
            key=key,
            timeout_s=timeout_s,
            connections_max=connections_max,
            mode=mode,
        )
        self._portal = Portal()

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
    ) -> Client:
        """Straight from Redis, with the lookup service in this process. Either `url` (redis://host:port/0, rediss://
        with TLS) and the names of the `contexts`, or `config`, the path of a ctxpipe.yaml, of which `contexts` may name
        some. A deployment whose topics are named by others needs `config` where lookups give positions.

        Raises ConfigError for what can't be used.
        """
        made = cls.__new__(cls)
        made._client = AsyncClient.direct(
            url,
            contexts=contexts,
            config=config,
            username=username,
            password=password,
            ca=ca,
            prefix=prefix,
            cluster=cluster,
        )
        made._portal = Portal()
        return made

    def get(
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
        return self._portal.run(
            self._client.get(
                context,
                key,
                budget_ms=budget_ms,
                max_age_ms=max_age_ms,
                position=position,
                token_budget=token_budget,
                sections=sections,
                fields=fields,
            )
        )

    def get_many(
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
        return self._portal.run(
            self._client.get_many(
                context,
                keys,
                budget_ms=budget_ms,
                max_age_ms=max_age_ms,
                position=position,
                token_budget=token_budget,
                sections=sections,
                fields=fields,
            )
        )

    def search(
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
        return self._portal.run(
            self._client.search(
                context,
                text,
                vector=vector,
                key=key,
                k=k,
                filter=filter,
                min_score=min_score,
                mode=mode,
                space=space,
                bundles=bundles,
                budget_ms=budget_ms,
                position=position,
            )
        )

    def by_id(self, context: str, bundle_id: str) -> PastBundle | None:
        """What the answer with this `id` held, byte for byte; None where that is not kept (any more)."""
        return self._portal.run(self._client.by_id(context, bundle_id))

    def contexts(self) -> list[ContextInfo]:
        """Those that this credential, or this client, may read."""
        return self._portal.run(self._client.contexts())

    def tools(self) -> list[dict[str, Any]]:
        """The contexts as functions for a model, in the strict form of OpenAI's interface; see `call_tool`."""
        return self._portal.run(self._client.tools())

    def call_tool(self, name: str, arguments: str, *, budget_ms: float | None = None) -> str:
        """What a model gets to read for a call of one of `tools`: JSON. A call that makes no sense is answered with
        what is wrong with it, and so is a store that is away; nothing is raised for either."""
        return self._portal.run(self._client.call_tool(name, arguments, budget_ms=budget_ms))

    @staticmethod
    def position(
        source: str, *, lsn: str | int | None = None, write_time: datetime | int | None = None, cluster: str = ""
    ) -> str:
        """A token for everything that `source` committed up to a write, for `get`, `get_many` and `search`.

        Of Postgres: `lsn` is what pg_current_wal_insert_lsn() gives after the commit (16/B374D848), `cluster` the
        system identifier of the server, so that another's is refused. Of Cassandra and Scylla: `write_time` is when the
        driver had confirmed the write, a datetime with a zone or microseconds since 1970 UTC. Raises BadRequest.
        """
        return AsyncClient.position(source, lsn=lsn, write_time=write_time, cluster=cluster)

    def close(self) -> None:
        """Ends its connections and its thread; calls on their way fail."""
        self._portal.close(self._client.close)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
