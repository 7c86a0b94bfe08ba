"""What `ctxpipe check` says of embeddings: a context's space, what one change embeds, and what all texts cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ConfigError, CtxpipeError, EnvironmentProblem, Poison, Retryable

if TYPE_CHECKING:
    from connectors.source import Finding
    from pipeline.composition import Choice
    from pipeline.core.config import Config
    from pipeline.embedding.engine import Engine
    from pipeline.ops.oracle import Oracle
    from schemas.context import ContextSpec, Embedding, Section
    from schemas.fan_out import FanOut

SAMPLED_TEXTS = 50
COUNT_TIMEOUT_S = 60.0
REDIS_TIMEOUT_S = 5.0
SHORT_TEXTS = 16
"""So many texts are embedded to measure a rate."""


@dataclass
class Sample:
    """`rows` of the root table, and the texts of some of them; `failing` says why others have none."""

    rows: int = 0
    texts: list[str] = field(default_factory=list)
    empty: int = 0
    failing: list[str] = field(default_factory=list)


async def check_embedding(
    config: Config, spec: ContextSpec, fan_outs: Mapping[str, FanOut], asks: bool
) -> tuple[list[Finding], dict[str, Any]]:
    """Findings, and what `--json` shows of the context's embedding. `asks`: sources and Redis can be reached.

    Loads the model; an endpoint is not asked for more than its dimension.
    """
    from connectors.source import Finding
    from pipeline.embedding.open import open_engine
    from pipeline.embedding.space import define_space, space_id

    assert spec.embedding is not None
    subject = f"context {spec.context}: embedding"
    shown: dict[str, Any] = {"context": spec.context, "space": None, "sections": _sections(spec, fan_outs)}
    try:
        engine = await asyncio.to_thread(open_engine, spec.embedding, config.embedding)
    except CtxpipeError as error:
        severity = "unreachable" if isinstance(error, Retryable) else "unfit"
        return [Finding(severity, subject, str(error))], shown
    try:
        shown["space"] = space_id(define_space(spec, engine.identity))
        findings = [
            Finding("ok", subject, await _standing(config, spec, shown["space"]) if asks else "the model is there")
        ]
        if spec.embedding.gate.evaluation is not None:
            findings += _evaluation(config, spec, subject)
        if asks:
            findings += await _costs(config, spec, engine, subject, shown)
    finally:
        engine.close()
    return findings, shown


def measured_spec(spec: ContextSpec) -> ContextSpec:
    """The spec with nothing decided for the sections that are embedded: those are measured too, copied or linked."""
    from pipeline.text import names_used

    if spec.embedded_template is None:
        return spec
    used = names_used(spec.embedded_template)
    sections = {name: _undecided(part) if name in used else part for name, part in spec.sections.items()}
    return spec.model_copy(update={"sections": sections})


def _undecided(section: Section) -> Section:
    inner = {name: _undecided(part) for name, part in section.sections.items()}
    return section.model_copy(update={"compose": "auto", "sections": inner})


def sentence(section: Mapping[str, Any]) -> str:
    """What a change of a section's row embeds."""
    average, most = section["embeddings_per_change"], section["embeddings_per_change_max"]
    found = "not measured" if average is None else f"{average:,} embeddings on average, {most:,} at worst"
    return f"{section['section']} ({section['composition']}): a change of one row is {found}"


def _sections(spec: ContextSpec, fan_outs: Mapping[str, FanOut]) -> list[dict[str, Any]]:
    """The sections that the embedded template looks at: a change there changes the texts of all bundles that show it,
    copied or linked."""
    from pipeline.composition import choose
    from pipeline.text import names_used

    used = names_used(spec.embedded_template or "")
    choices = choose(spec, fan_outs)
    return [
        _section(path, choice, _shown_by(path, fan_outs))
        for path, choice in choices.items()
        if path.partition(".")[0] in used
    ]


def _section(path: str, choice: Choice, shown_by: FanOut | None) -> dict[str, Any]:
    return {
        "section": path,
        "composition": choice.composition if choice.inside is None else f"inside {choice.inside}",
        "embeddings_per_change": None if shown_by is None else round(shown_by.average, 2),
        "embeddings_per_change_max": None if shown_by is None else shown_by.most,
    }


def _shown_by(path: str, fan_outs: Mapping[str, FanOut]) -> FanOut | None:
    """Bundles that show one row of the section, whatever links are on the way."""
    from schemas.fan_out import FanOut

    found = FanOut(1.0, 1)
    parts = path.split(".")
    for number in range(1, len(parts) + 1):
        measured = fan_outs.get(".".join(parts[:number]))
        if measured is None or not measured.most:
            return None
        found = measured.times(found)
    return found


async def _standing(config: Config, spec: ContextSpec, space: str) -> str:
    """What the space is beside those that the version has."""
    from pipeline.stores.redis_client import RedisClient
    from pipeline.stores.redis_spaces import RedisSpaces
    from pipeline.stores.redis_store import context_settings

    client = RedisClient(context_settings(config, spec, REDIS_TIMEOUT_S))
    try:
        records = await RedisSpaces(client).all()
    except (Retryable, EnvironmentProblem):
        return f"space {space}"
    finally:
        await client.close()
    state = next((record.state for record in records if record.space == space), None)
    serving = next((record.space for record in records if record.state == "serving"), None)
    if state is not None and state != "retired":
        return f"space {space}: it is the {state} one"
    beside = f", beside {serving}, which serves until the new one is complete and judged" if serving else ""
    return f"space {space}: a worker's start begins it{beside}"


def _evaluation(config: Config, spec: ContextSpec, subject: str) -> list[Finding]:
    from connectors.source import Finding
    from pipeline.core.config import load_context_files
    from pipeline.ops.space_evaluation import read_evaluation

    assert spec.embedding is not None and spec.embedding.gate.evaluation is not None
    path = load_context_files(config)[spec.context].document.path.parent / spec.embedding.gate.evaluation
    try:
        found = read_evaluation(path)
    except ConfigError as error:
        return [Finding("unfit", f"{subject}.gate", mistake) for mistake in error.mistakes]
    return [Finding("ok", f"{subject}.gate", f"{len(found.queries):,} queries with {found.labels:,} labels")]


async def _costs(
    config: Config, spec: ContextSpec, engine: Engine, subject: str, shown: dict[str, Any]
) -> list[Finding]:
    """Of all texts, by the source's rows and the texts of some of them."""
    from dataclasses import asdict

    from connectors.source import Finding
    from pipeline.ops.space_cost import estimate, limited_rate_per_s, mean_tokens, price_per_token

    assert spec.embedding is not None
    try:
        async with asyncio.timeout(COUNT_TIMEOUT_S):
            sample = await _sampled(config, spec)
    except TimeoutError:
        return [Finding("note", subject, f"its cost is not known: counting rows took over {COUNT_TIMEOUT_S:g} s")]
    except CtxpipeError as error:
        return [Finding("note", subject, f"its cost is not known: {error}")]
    tokens = mean_tokens(sample.texts, spec.embedding)
    rate = limited_rate_per_s(spec.embedding, config.embedding, tokens) if tokens else None
    if rate is None and spec.embedding.engine != "openai":
        rate = await asyncio.to_thread(_rate_per_s, engine, sample.texts[:SHORT_TEXTS])
    found = estimate(sample.rows, tokens, price_per_token(spec.embedding, config.embedding), rate)
    shown["estimate"] = {**asdict(found), "rate_per_s": rate}
    findings = [Finding("note", subject, told_estimate(spec.embedding, shown["estimate"]))]
    if sample.failing:
        text = f"the template fails on {len(sample.failing)} of {SAMPLED_TEXTS} sampled bundles: {sample.failing[0]}"
        findings.append(Finding("warning", subject, text, "Those bundles have no vector; mend the template."))
    if sample.empty:
        text = f"the text is empty for {sample.empty} of {SAMPLED_TEXTS} sampled bundles"
        findings.append(Finding("note", subject, f"{text}; they have no vector"))
    return findings


def told_estimate(embedding: Embedding, found: Mapping[str, Any]) -> str:
    """`found`: the fields of an Estimate, and `rate_per_s`."""
    from pipeline.commands._space_show import duration

    parts = [f"all {found['texts']:,} texts"]
    if found["tokens"] is not None:
        parts.append(f"about {found['tokens']:,} tokens")
    unknown = f"cost unknown: endpoint {embedding.endpoint} has no price_per_million_tokens"
    parts.append(unknown if found["cost"] is None else f"cost {found['cost']:.4g}")
    if found["duration_s"] is not None and found["rate_per_s"]:
        parts.append(f"{duration(found['duration_s'])} at {found['rate_per_s']:,.0f} texts/s on one worker")
    return ", ".join(parts)


async def _sampled(config: Config, spec: ContextSpec) -> Sample:
    """Raises as `verify` where a source can't be read."""
    from contextlib import AsyncExitStack

    from pipeline.commands.verify import readings_of
    from pipeline.ops.oracle import Oracle

    async with AsyncExitStack() as stack:
        readers = {}
        for name, reading in readings_of(config, spec, lambda what, count: None).items():
            readers[name] = reading.reader
            stack.push_async_callback(reading.reader.close)
        oracle = await Oracle.create(spec, readers, config.mask_key)
        return await _sample(oracle, spec.embedded_template or "")


async def _sample(oracle: Oracle, template: str) -> Sample:
    from pipeline.text import render_template

    chooser, sample, chosen = Random(0), Sample(), list[str]()
    async for keys in oracle.keys():
        for key in keys:
            sample.rows += 1
            if len(chosen) < SAMPLED_TEXTS:
                chosen.append(key)
            elif (place := chooser.randrange(sample.rows)) < SAMPLED_TEXTS:
                chosen[place] = key
    for bundle in (await oracle.bundles(chosen)).values():
        try:
            text = render_template(template, json.loads(bundle))
        except Poison as error:
            sample.failing.append(str(error))
            continue
        if text:
            sample.texts.append(text)
        else:
            sample.empty += 1
    return sample


def _rate_per_s(engine: Engine, texts: list[str]) -> float | None:
    """Of this engine on this machine, in one batch after another that warms it up."""
    import time

    if not texts:
        return None
    batch = texts[: engine.texts_max]
    engine.embed(batch[:1])
    started_s = time.monotonic()
    engine.embed(batch)
    return len(batch) / max(time.monotonic() - started_s, 1e-6)
