"""Opens the embedding spaces of a context version: their records, what proves one complete, and what judges it.

Commands of `ctxpipe space` and the worker's background task (`settle`) compose here what ops decides and stores hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import ConfigError, Fatal
from pipeline.embedding.space import SpaceDefinition, as_configured, decode_definition
from pipeline.ops.space_cost import Estimate, estimate, limited_rate_per_s, mean_tokens, price_per_token
from pipeline.ops.space_digest import Places, SpaceProof, prove_complete
from pipeline.ops.space_evaluation import Evaluation, LabelledQuery, read_evaluation
from pipeline.ops.space_judge import Contestant, Judgement, judge, unjudged
from pipeline.ops.space_promotion import Step, judged_by, next_step
from pipeline.stores.spaces import Placed, SpaceRecord
from schemas.context import ContextSpec, Gate
from schemas.errors import DecodeError
from schemas.keys import root_key_texts
from schemas.topics import request_topic, space_group, text_topic, vector_topic
from schemas.vectors import VectorRecord, decode_text, decode_vectors

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.embedding.engine import Engine
    from pipeline.ops.space_judge import Search
    from pipeline.stores.redis_store import Stores
    from pipeline.streams.space_topics import SpaceTopics

SAMPLED_TEXTS = 200
SETTLE_WAIT_S = 5.0


@dataclass(frozen=True)
class OpenSpaces:
    """The spaces of one version on its stores. `spec` is as stored with the version, but for the gate, which is that
    of the file; `folder` is the file's. Close it afterwards."""

    config: Config
    spec: ContextSpec
    folder: Path
    stores: Stores
    clock: Clock

    async def close(self) -> None:
        await self.stores.close()

    async def records(self) -> list[SpaceRecord]:
        return await self.stores.spaces.all()

    def topics(self, space: str) -> SpaceTopics:
        """To be stopped afterwards."""
        from pipeline.streams.space_topics import SpaceTopics

        group = space_group(self.spec.context, self.spec.version, space)
        return SpaceTopics(self.config.kafka.bootstrap_servers, group, **self.config.kafka.security)

    @property
    def request_topic(self) -> str:
        return request_topic(self.spec.context, self.spec.version)

    def text_topic(self, space: str) -> str:
        return text_topic(self.spec.context, self.spec.version, space)

    def vector_topic(self, space: str) -> str:
        return vector_topic(self.spec.context, self.spec.version, space)

    @property
    def gate(self) -> Gate:
        return self.spec.embedding.gate if self.spec.embedding is not None else Gate()

    def evaluation(self) -> Evaluation | None:
        """Of the gate; keys are spelt as bundles are named. Raises ConfigError with the mistakes of the file."""
        name = self.gate.evaluation
        if name is None:
            return None
        found = read_evaluation(self.folder / name, name)
        queries = [
            LabelledQuery(
                query.query,
                dict(zip(root_key_texts(self.spec, list(query.relevant)), query.relevant.values(), strict=True)),
            )
            for query in found.queries
        ]
        return Evaluation(found.name, found.digest, queries)

    async def prove(self, record: SpaceRecord, named_keys_max: int = 20, states_only: bool = False) -> SpaceProof:
        """Whether the space is complete; `states_only`: by what Redis knows of its vectors."""
        space, dimension = record.space, record.dimension
        topics = self.topics(space)
        texts, vectors = topics.reader(self.text_topic(space)), topics.reader(self.vector_topic(space))
        places = Places(
            None if states_only else self.stores.reader,
            self.stores.vector_states,
            space,
            None if states_only else texts.read_new,
            None if states_only else vectors.read_new,
            lambda value: decode_text(value, space).text_hash,
            lambda value: decode_vectors(value, space, dimension).text_hash,
            expiring=self.spec.serving.time_to_live_s is not None,
        )
        try:
            return await prove_complete(places, self.clock, named_keys_max)
        finally:
            await texts.close()
            await vectors.close()
            await topics.stop()

    async def judge(self, candidate: SpaceRecord, serving: SpaceRecord | None) -> Judgement:
        """Opens the engines of both and reads all their vectors: seconds to minutes, and the vectors' size in memory.

        Raises ConfigError, EnvironmentProblem and Fatal where an engine can't be opened or is another one.
        """
        evaluation = self.evaluation()
        if evaluation is None:
            return unjudged(self.gate)
        with ExitStack() as stack:
            ours = await self._contestant(candidate, stack)
            theirs = await self._contestant(serving, stack) if serving is not None else None
            return await judge(ours, theirs, evaluation, self.gate, self.clock)

    async def behind(self, space: str, wait_s: float) -> int:
        """How many records that wait for the space's workers now are not done after `wait_s`."""
        topics = self.topics(space)
        try:
            return await topics.behind([self.request_topic, self.text_topic(space)], wait_s)
        finally:
            await topics.stop()

    async def vectors(self, record: SpaceRecord) -> dict[str, VectorRecord]:
        """The vectors of every bundle, from the topic."""
        topics = self.topics(record.space)
        reader = topics.reader(self.vector_topic(record.space))
        found: dict[str, VectorRecord] = {}
        try:
            async for chunk in reader.read_new():
                for key_bytes, value in chunk:
                    key = key_bytes.decode("utf-8", "surrogateescape")
                    found.pop(key, None)
                    if value is not None:
                        found[key] = decode_vectors(value, record.space, record.dimension)
        except DecodeError as error:
            raise Fatal(f"{self.vector_topic(record.space)}: {error}") from error
        finally:
            await reader.close()
            await topics.stop()
        return found

    async def sampled_texts(self, space: str, most: int = SAMPLED_TEXTS) -> list[str]:
        """Some texts of the space, to estimate by."""
        topics = self.topics(space)
        reader, found = topics.reader(self.text_topic(space)), dict[bytes, str]()
        try:
            async for chunk in reader.read_new():
                for key, value in chunk:
                    if value is not None:
                        found[key] = decode_text(value, space).text
                if len(found) >= most:
                    break
        except DecodeError as error:
            raise Fatal(f"{self.text_topic(space)}: {error}") from error
        finally:
            await reader.close()
            await topics.stop()
        return list(found.values())[:most]

    async def estimate(self, record: SpaceRecord, like: SpaceRecord) -> Estimate:
        """Of embedding for `record` all that `like` has texts of."""
        count = 0
        async for _, state in self.stores.vector_states.scan_states(like.space):
            count += bool(state.text_hash)
        embedding = definition_of(record).embedding
        tokens = mean_tokens(await self.sampled_texts(like.space), embedding)
        settings = self.config.embedding
        rate = limited_rate_per_s(embedding, settings, tokens) if tokens else None
        return estimate(count, tokens, price_per_token(embedding, settings), settings.candidate_texts_per_s or rate)

    async def _contestant(self, record: SpaceRecord, stack: ExitStack) -> Contestant:
        from pipeline.ops.space_measures import ExactVectors

        engine, definition = await self._engine(record)
        stack.callback(engine.close)
        records = await self.vectors(record)
        texts, embedding = await self.sampled_texts(record.space), definition.embedding
        price = price_per_token(embedding, self.config.embedding)
        cost = estimate(len(records), mean_tokens(texts, embedding), price, None).cost
        vectors = await asyncio.to_thread(ExactVectors, records.items(), record.dimension)
        index = await asyncio.to_thread(build_index, record, definition, records, stack)
        return Contestant(record.space, engine, vectors, index, cost)

    async def _engine(self, record: SpaceRecord) -> tuple[Engine, SpaceDefinition]:
        from pipeline.streams.space_compose import open_engine_of

        definition = as_configured(definition_of(record), self.spec)
        engine = await asyncio.to_thread(open_engine_of, self.config, definition, record)
        return engine, definition


async def open_spaces(config: Config, context: str, version: int | None = None) -> OpenSpaces:
    """Of the version that serves, else of the configured one; `version` asks for another.

    Raises ConfigError for an unknown context or version, Retryable when Redis is away.
    """
    from pipeline.commands._contexts import spec_named
    from pipeline.core.config import load_context_files
    from pipeline.lookup.opened import open_context

    files = load_context_files(config)
    configured = spec_named({name: file.spec for name, file in files.items()}, context)
    opened = await open_context(config, configured, version=version)
    spec = opened.spec
    if spec.embedding is not None and configured.embedding is not None:
        gated = spec.embedding.model_copy(update={"gate": configured.embedding.gate})
        spec = spec.model_copy(update={"embedding": gated})
    return OpenSpaces(config, spec, files[context].document.path.parent, opened.stores, SystemClock())


def definition_of(record: SpaceRecord) -> SpaceDefinition:
    """Raises Fatal for one that another release wrote."""
    try:
        return decode_definition(record.definition)
    except DecodeError as error:
        raise Fatal(f"space {record.space} belongs to another release of ctxpipe: {error}") from error


async def settle(spaces: OpenSpaces, wanted: str) -> Step:
    """One round of a worker's background task: does what next_step says about the space that the spec asks for, and
    returns what it came to. Raises what proving and judging raise; nothing is changed then."""
    embedding = spaces.spec.embedding
    if embedding is None:
        return Step("wait", "the context embeds nothing")
    evaluation = spaces.evaluation()
    proof: SpaceProof | None = None
    judgement: Judgement | None = None
    while True:
        records = {one.space: one for one in await spaces.records()}
        serving = next((one for one in records.values() if one.state == "serving"), None)
        inputs = judged_by(
            None if serving is None else serving.space, embedding.gate, evaluation.digest if evaluation else ""
        )
        step = next_step(
            list(records.values()), wanted, embedding.promotion, inputs, spaces.clock.now_us(), proof, judgement
        )
        if step.do == "prove":
            left = await spaces.behind(wanted, SETTLE_WAIT_S)
            if left:  # a proof reads everything: it is not asked for while it would say no anyway
                return Step("wait", f"{left:,} records are still to be done", wanted)
            proof = await spaces.prove(records[wanted])
        elif step.do == "judge":
            judgement = await spaces.judge(records[wanted], serving)
        else:
            break
    if step.do == "promote" and not await spaces.stores.spaces.promote(step.space, step.instead_of, step.evidence):
        return Step("wait", "another space became the serving one meanwhile", wanted)
    if step.do == "note":
        await spaces.stores.spaces.note(step.space, step.evidence)
    return step


def find_record(records: list[SpaceRecord], space: str | None) -> SpaceRecord | None:
    """The one named, or by the beginning of its name; without a name the candidate. Raises ConfigError for an unknown
    name."""
    if space is None:
        return next((one for one in records if one.state == "candidate"), None)
    found = [one for one in records if one.space.startswith(space)]
    exact = [one for one in found if one.space == space] or found
    if len(exact) == 1:
        return exact[0]
    known = ", ".join(one.space for one in records) or "none"
    what = "several spaces begin with" if exact else "there is no space"
    raise ConfigError([f"{what} {space!r}; the version has {known}"])


def build_index(
    record: SpaceRecord, definition: SpaceDefinition, records: Mapping[str, VectorRecord], stack: ExitStack
) -> Search:
    """Blocks. An index of these vectors as replicas have it, kept nowhere; the stack closes it."""
    from pipeline.stores.vectors import open_index

    index = open_index(None, record.space, record.dimension, definition.embedding.filters)
    stack.callback(index.close)
    index.apply([Placed(0, number, key, found) for number, (key, found) in enumerate(records.items())])
    index.maintain()
    return index.search
