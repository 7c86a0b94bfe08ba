"""All stores of one context version on one Redis, and the pointer to the serving version."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from pipeline.core.config import Config
from pipeline.core.errors import ConfigError, Fatal
from pipeline.core.redis import RedisConfig
from pipeline.stores.redis_bundles import RedisBundles
from pipeline.stores.redis_cells import RedisCells
from pipeline.stores.redis_client import RedisClient, RedisSettings
from pipeline.stores.redis_marks import RedisMarks
from pipeline.stores.redis_relations import RedisRelations
from pipeline.stores.redis_rows import RedisRows
from pipeline.stores.redis_spaces import RedisSpaces, RedisVectorStates
from schemas.context import ContextSpec
from schemas.definition import Definition, changed_parts, decode_definition, encode_definition
from schemas.errors import DecodeError

_PROMOTE = """
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
"""


class RedisServing:
    """Which version of a context answers lookups, and what each version was built from."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._base = f"{client.settings.prefix}:{client.settings.context}:"
        self._pointer, self._versions = f"{self._base}serving", f"{self._base}versions"

    async def promote(self, version: int) -> None:
        """Lookups use this version from now on, unless a newer one already serves."""
        await self.client.run("EVAL", _PROMOTE, 1, self._pointer, version)

    async def current(self) -> int | None:
        """The serving version; None before the first has caught up."""
        value = await self.client.run("GET", self._pointer)
        return None if value is None else int(value)

    async def remember(
        self, spec: ContextSpec, composition: dict[str, str], traced: tuple[str, ...] = (), tokenizer: str = ""
    ) -> Definition:
        """What this version is built from: the first definition is kept, so that all workers and lookups agree.

        Raises ConfigError when state of this version was built from a spec that makes other bundles. Description and
        serving may change at any time, and so may the embedding, which makes no bundle: a worker's start brings the
        newest. `traced` is kept as the first worker gave it, like the composition. `tokenizer` is a digest: another one
        would give other counts to the bundles of one version.
        """
        kept = await self.restore(spec, composition, traced, tokenizer)
        if kept.spec != spec:
            kept = Definition(spec, kept.composition, kept.traced, kept.tokenizer)
            await self.client.run("SET", self._definition_key(spec.version), encode_definition(kept))
        return kept

    async def restore(
        self, spec: ContextSpec, composition: dict[str, str], traced: tuple[str, ...] = (), tokenizer: str = ""
    ) -> Definition:
        """As `remember`, for a worker long at work: it brings back what Redis has lost and changes nothing else."""
        offered = Definition(spec, composition, traced, tokenizer)
        await self.client.run("SETNX", self._definition_key(spec.version), encode_definition(offered))
        await self.client.run("SADD", self._versions, spec.version)
        return await self.known(spec, tokenizer) or offered

    async def known(self, spec: ContextSpec, tokenizer: str | None = None) -> Definition | None:
        """What `remember` keeps of this version; None before the first worker started. Raises as `remember`; where
        nobody knows the `tokenizer`, None, it is not compared."""
        kept = await self.definition(spec.version)
        if kept is not None:
            self._refuse_changes(spec, kept, max(await self.versions(), default=spec.version), tokenizer)
        return kept

    async def definition(self, version: int) -> Definition | None:
        """For readers of any version. Raises Fatal for one that another release of ctxpipe wrote."""
        value = await self.client.run("GET", self._definition_key(version))
        try:
            return None if value is None else decode_definition(value)
        except DecodeError as error:
            raise Fatal(
                f"{self.client.settings.context} version {version} belongs to another release of ctxpipe: {error}"
            ) from error

    async def versions(self) -> list[int]:
        """Every version that has state, ascending."""
        return sorted(int(member) for member in await self.client.run("SMEMBERS", self._versions))

    async def texts_asked(self, version: int) -> bool:
        """Whether the bundles of a version that were there before anything was embedded have been asked for."""
        return bool(await self.client.run("EXISTS", self._asked_key(version)))

    async def remember_texts_asked(self, version: int) -> None:
        await self.client.run("SET", self._asked_key(version), 1)

    def _asked_key(self, version: int) -> str:
        return f"{self._base}v{version}:{{0}}:texts-asked"

    def _definition_key(self, version: int) -> str:
        return f"{self._base}v{version}:{{0}}:definition"

    def _refuse_changes(self, spec: ContextSpec, kept: Definition, newest: int, tokenizer: str | None) -> None:
        changed = changed_parts(kept.spec, spec)
        if not changed and tokenizer is not None and kept.tokenizer != tokenizer:
            changed = ["the content of text.tokenizer"]
        if changed:
            raise ConfigError([changed_message(spec, changed, newest)])


def changed_message(spec: ContextSpec, changed: list[str], newest: int) -> str:
    """What a person is told who changed a spec and not its version."""
    return (
        f"context {spec.context}: its file differs from what version {spec.version} is built from "
        f"({', '.join(changed)}). Write version: {newest + 1} there: the new bundles are built beside the serving ones "
        "and take their place when complete. Or take the change back."
    )


@dataclass(frozen=True, slots=True)
class Stores:
    """What the flow, the agents and lookups need of Redis. `reader` is the BundleReader."""

    client: RedisClient
    rows: RedisRows
    cells: RedisCells
    relations: RedisRelations
    bundles: RedisBundles
    marks: RedisMarks
    reader: RedisBundles
    serving: RedisServing
    spaces: RedisSpaces
    vector_states: RedisVectorStates

    @property
    def in_order(self) -> bool:
        """True: what is asked of these stores is carried out in the order of asking."""
        return self.client.in_order

    async def close(self) -> None:
        await self.client.close()


def context_settings(config: Config, spec: ContextSpec, timeout_s: float = 5.0) -> RedisSettings:
    """The corner of Redis that belongs to this version of the context."""
    settings = redis_settings(config.redis, spec.context, spec.version, timeout_s, spec.serving.time_to_live_s)
    kept_s = spec.history.retention_s if spec.history is not None else 0
    return msgspec.structs.replace(settings, retention_s=kept_s)


def redis_settings(
    redis: RedisConfig, context: str, version: int, timeout_s: float = 5.0, time_to_live_s: int | None = None
) -> RedisSettings:
    """As context_settings, for those who have no spec; bundles that they write live for ever."""
    return RedisSettings(
        url=redis.url,
        context=context,
        version=version,
        cluster=redis.cluster,
        prefix=redis.prefix,
        time_to_live_s=time_to_live_s or 0,
        timeout_s=timeout_s,
        login=redis,
    )


async def open_stores(settings: RedisSettings) -> Stores:
    """Connects and loads the store functions. Raises Retryable when Redis is away, EnvironmentProblem at a refusal."""
    stores = make_stores(settings)
    try:
        await stores.client.load_functions()
    except BaseException:
        await stores.close()
        raise
    return stores


def make_stores(settings: RedisSettings) -> Stores:
    """Asks nothing of Redis yet; for who can do without it for a while."""
    client = RedisClient(settings)
    bundles = RedisBundles(client)
    return Stores(
        client,
        RedisRows(client),
        RedisCells(client),
        RedisRelations(client),
        bundles,
        RedisMarks(client),
        bundles,
        RedisServing(client),
        RedisSpaces(client),
        RedisVectorStates(client),
    )
