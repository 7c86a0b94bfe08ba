"""`ctxpipe space`: the embedding spaces of a context, how far they are, which is better, and which one serves."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pipeline.commands._spaces import OpenSpaces
    from pipeline.ops.space_digest import SpaceProof
    from pipeline.ops.space_judge import Judgement
    from pipeline.stores.spaces import SpaceRecord
    from pipeline.streams.space_topics import SpaceTopics

RATE_LOOK_S = 2.0
RETIRE_WAIT_S = 30.0
ROLLBACK_WAIT_S = 10.0

Command = TypeVar("Command", bound=Callable[..., Any])
Answer = tuple[bool, dict[str, Any]]
"""Whether the answer is yes, and what `--json` prints."""


class _Group(click.Group):
    """`export` is a module of its own, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "export"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "export":
            return super().get_command(ctx, cmd_name)
        found = importlib.import_module("pipeline.commands.space_export").command
        assert isinstance(found, click.Command)
        return found


@click.group(cls=_Group)
def command() -> None:
    """Look at embedding spaces, compare them, and choose the one that serves.

    Exit codes: 0 fine, 1 the answer is no, 2 usage or configuration, 3 the environment.
    """


def _options(function: Command) -> Command:
    for option in (
        click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True),
        click.option("--json", "as_json", is_flag=True, help="One JSON object."),
        click.option(
            "--version", type=click.IntRange(1), metavar="N", help="Of the spec; default: the one that serves."
        ),
    ):
        function = option(function)
    return function


@command.command("list")
@click.argument("context", required=False)
@_options
def list_spaces(context: str | None, version: int | None, as_json: bool, config_path: str) -> None:
    """Show the spaces of CONTEXT, or of every context."""
    from pipeline.commands._space_show import record_object, show_records
    from pipeline.core.config import load, load_contexts

    names = [context] if context is not None else list(load_contexts(load(config_path)))
    rows: list[dict[str, Any]] = []

    async def read(spaces: OpenSpaces) -> Answer:
        spec = spaces.spec
        rows.extend(record_object(spec.context, spec.version, record) for record in await spaces.records())
        return True, {}

    for name in names:
        _run(config_path, name, version, read)
    if as_json:
        click.echo(json.dumps({"spaces": rows}))
    elif rows:
        show_records(rows)
    else:
        click.echo("No embedding spaces; a worker makes one for each context with a section `embedding`.")


@command.command("status")
@click.argument("context")
@click.option("--verify", is_flag=True, help="Also compare Redis, text topic and vector topic, key by key.")
@_options
def status(context: str, verify: bool, version: int | None, as_json: bool, config_path: str) -> None:
    """Show how far each space of CONTEXT is. With --verify, exit code 1 when one of them is not complete."""
    from pipeline.commands._space_show import show_proof, show_status
    from pipeline.ops.space_promotion import proof_object

    async def read(spaces: OpenSpaces) -> Answer:
        found, complete = [], True
        for record in await spaces.records():
            if record.state == "retired":
                continue
            shown = await _status(spaces, record)
            if not as_json:
                show_status(shown)
            if verify:
                proof = await spaces.prove(record)
                shown["proof"], complete = proof_object(proof), complete and proof.complete
                if not as_json:
                    show_proof(proof)
            found.append(shown)
        if not found and not as_json:
            click.echo(f"{context} version {spaces.spec.version} has no space in use.")
        return complete, {"context": context, "version": spaces.spec.version, "spaces": found}

    _finish(_run(config_path, context, version, read), as_json)


async def _status(spaces: OpenSpaces, record: SpaceRecord) -> dict[str, Any]:
    from dataclasses import asdict

    from pipeline.commands._space_show import record_object
    from pipeline.commands._spaces import definition_of
    from pipeline.ops.space_cost import estimate, limited_rate_per_s, mean_tokens, price_per_token

    states = await _counted(spaces, record.space)
    topics = spaces.topics(record.space)
    try:
        lags = await topics.lags([spaces.request_topic, spaces.text_topic(record.space)])
        waiting = states["pending"] + states["failing"]
        rate = await _rate_per_s(topics, spaces.vector_topic(record.space)) if waiting else None
    finally:
        await topics.stop()
    embedding = definition_of(record).embedding
    tokens = mean_tokens(await spaces.sampled_texts(record.space), embedding) if waiting else None
    settings = spaces.config.embedding
    rate = rate or (limited_rate_per_s(embedding, settings, tokens) if tokens else None)
    left = estimate(waiting, tokens, price_per_token(embedding, settings), rate)
    return {
        **record_object(spaces.spec.context, spaces.spec.version, record),
        **states,
        "topics": [asdict(lag) for lag in lags],
        "left": {**asdict(left), "rate_per_s": rate},
    }


async def _counted(spaces: OpenSpaces, space: str) -> dict[str, Any]:
    """By what Redis knows of each text at this moment."""
    from pipeline.ops.space_digest import disagreement_of_vector, refused

    counts, problems = dict.fromkeys(("texts", "vectors", "pending", "failing", "refused"), 0), dict[str, int]()
    async for _, state in spaces.stores.vector_states.scan_states(space):
        counts["texts"] += bool(state.text_hash)
        counts["vectors"] += bool(state.vector_hash)
        counts["refused"] += refused(state)
        found = disagreement_of_vector(state)
        if found is not None:
            counts[found.kind] += 1
        if state.problem:
            problems[state.problem] = problems.get(state.problem, 0) + 1
    shown = sorted(problems.items(), key=lambda pair: (-pair[1], pair[0]))[:20]
    return {**counts, "problems": dict(shown)}


async def _rate_per_s(topics: SpaceTopics, topic: str) -> float | None:
    """How fast vectors arrive; None where none arrived while it looked."""
    import asyncio

    partitions = await topics.partitions([topic]) if topic in await topics.existing() else frozenset()
    if not partitions:
        return None
    before = sum((await topics.end_offsets(partitions)).values())
    await asyncio.sleep(RATE_LOOK_S)
    arrived = sum((await topics.end_offsets(partitions)).values()) - before
    return arrived / RATE_LOOK_S if arrived > 0 else None


@command.command("compare")
@click.argument("context")
@click.argument("space", required=False)
@_options
def compare(context: str, space: str | None, version: int | None, as_json: bool, config_path: str) -> None:
    """Judge SPACE (default: the candidate) of CONTEXT against the serving one, by the gate of the context's spec.

    Exit code 0: it may be promoted; 1: it may not, or a person has to decide.
    """
    from pipeline.commands._space_show import judgement_object, show_judgement

    async def judge(spaces: OpenSpaces) -> Answer:
        record, serving = await _pair(spaces, space)
        if record is None or record is serving:
            return _no(f"{context} version {spaces.spec.version} has no candidate to compare", as_json)
        judgement = await spaces.judge(record, serving)
        if not as_json:
            show_judgement(judgement)
        return judgement.verdict.decision == "promote", judgement_object(judgement)

    _finish(_run(config_path, context, version, judge), as_json)


@command.command("promote")
@click.argument("context")
@click.argument("space", required=False)
@click.option("--override-reason", metavar="TEXT", help="Promote it whatever speaks against it; TEXT is kept with it.")
@_options
def promote(
    context: str,
    space: str | None,
    override_reason: str | None,
    version: int | None,
    as_json: bool,
    config_path: str,
) -> None:
    """Let SPACE (default: the candidate) of CONTEXT serve; the one that serves now stays fed, for a return.

    Refused, with exit code 1, unless it is complete and the gate of the context's spec holds.
    """
    if override_reason is not None and not override_reason.strip():
        raise click.UsageError("--override-reason wants the reason in words")

    async def decide(spaces: OpenSpaces) -> Answer:
        record, serving = await _pair(spaces, space)
        if record is None or record.state == "retired":
            return _no(
                "there is no candidate" if record is None else f"{record.space} is retired, nobody feeds it", as_json
            )
        if record is serving:
            return True, _told({"promoted": False, "space": record.space, "reasons": ["it serves already"]}, as_json)
        return await _promote(spaces, record, serving, override_reason, as_json)

    _finish(_run(config_path, context, version, decide), as_json)


async def _promote(
    spaces: OpenSpaces, record: SpaceRecord, serving: SpaceRecord | None, override: str | None, as_json: bool
) -> Answer:
    proof = await spaces.prove(record)
    judgement = await spaces.judge(record, serving) if serving is not None else None
    against = [f"not complete: {reason}" for reason in proof.reasons]
    if judgement is not None and judgement.verdict.decision != "promote":
        against += judgement.verdict.reasons
    evidence = _evidence(spaces, serving, proof, judgement, override if against else None, against)
    instead_of = serving.space if serving is not None else None
    shown = {"promoted": False, "space": record.space, "instead_of": instead_of, "reasons": against}
    if against and override is None:
        if judgement is not None and record.state == "candidate" and proof.complete:
            await spaces.stores.spaces.note(record.space, evidence)
        return False, _told(shown, as_json)
    if not await spaces.stores.spaces.promote(record.space, instead_of, evidence):
        return False, _told({**shown, "reasons": ["another space became the serving one meanwhile"]}, as_json)
    reasons = against if override else (judgement.verdict.reasons if judgement is not None else ["the first space"])
    return True, _told({**shown, "promoted": True, "reasons": reasons, "override": override}, as_json)


def _evidence(
    spaces: OpenSpaces,
    serving: SpaceRecord | None,
    proof: SpaceProof,
    judgement: Judgement | None,
    override: str | None,
    against: list[str],
) -> bytes:
    from pipeline.ops.space_judge import evidence_of
    from pipeline.ops.space_promotion import action_evidence, judged_by, proof_object

    action: Any = "overridden" if override else "judged" if against else "promoted"
    now_us = spaces.clock.now_us()
    if judgement is None:
        return action_evidence(action, now_us, reason=override or "", proof=proof, reasons=against)
    digest = judgement.evaluation.digest if judgement.evaluation is not None else ""
    inputs = judged_by(serving.space if serving is not None else None, spaces.gate, digest)
    about = {"action": action, "override": override, "inputs": inputs, "proof": proof_object(proof)}
    return evidence_of(judgement, now_us, {**about, "spec_version": spaces.spec.version})


@command.command("rollback")
@click.argument("context")
@click.option("--reason", default="", metavar="TEXT", help="Kept with the space.")
@click.option("--force", is_flag=True, help="Even when the previous space is not complete.")
@_options
def rollback(context: str, reason: str, force: bool, version: int | None, as_json: bool, config_path: str) -> None:
    """Let the previous space of CONTEXT serve again, at once; nothing promotes the other one until you do.

    Refused, with exit code 1, when the previous space is not up to date.
    """

    async def turn_back(spaces: OpenSpaces) -> Answer:
        from pipeline.ops.space_promotion import action_evidence

        states = {record.state: record for record in await spaces.records()}
        serving, previous = states.get("serving"), states.get("previous")
        if serving is None or previous is None:
            return _no(f"{context} version {spaces.spec.version} has no previous space to go back to", as_json)
        against = [] if force else await _behind(spaces, previous)
        shown = {"rolled_back": False, "space": previous.space, "instead_of": serving.space, "reasons": against}
        if against:
            return False, _told(shown, as_json)
        now_us = spaces.clock.now_us()
        evidence = action_evidence("rolled back", now_us, reason=reason, instead_of=serving.space, forced=force)
        if not await spaces.stores.spaces.promote(previous.space, serving.space, evidence):
            return _no("another space became the serving one meanwhile", as_json)
        return True, _told({**shown, "rolled_back": True}, as_json)

    _finish(_run(config_path, context, version, turn_back), as_json)


async def _behind(spaces: OpenSpaces, record: SpaceRecord) -> list[str]:
    """Why a space is not up to date, by its group and by what Redis knows of its vectors."""
    left = await spaces.behind(record.space, ROLLBACK_WAIT_S)
    against = [f"nobody feeds it: {left:,} records wait for its workers"] if left else []
    proof = await spaces.prove(record, states_only=True)
    return against + proof.reasons


@command.command("retire")
@click.argument("context")
@click.argument("space")
@click.option("--force", is_flag=True, help="Also the previous one, which is kept fed for a return.")
@click.option("--wait", "wait_s", default=RETIRE_WAIT_S, show_default=True, type=click.FloatRange(0), metavar="SECONDS")
@_options
def retire(
    context: str, space: str, force: bool, wait_s: float, version: int | None, as_json: bool, config_path: str
) -> None:
    """Take SPACE of CONTEXT out of use and delete its topics and states. Never the one that serves."""

    async def end(spaces: OpenSpaces) -> Answer:
        from pipeline.commands._spaces import find_record

        record = find_record(await spaces.records(), space)
        assert record is not None, "a name is given"
        if record.state == "previous" and not force:
            return _no(f"{record.space} is kept for a return; --force retires it all the same", as_json)
        if not await spaces.stores.spaces.retire(record.space):
            return _no(f"{record.space} serves; promote another one first", as_json)
        topics = spaces.topics(record.space)
        try:
            # In this order an end in between leaves nothing that a later beginning would take for its own.
            names = [spaces.text_topic(record.space), spaces.vector_topic(record.space)]
            deleted = await topics.delete(names, wait_s)
        finally:
            await topics.stop()
        states = await spaces.stores.vector_states.forget(record.space)
        return True, _told({"retired": True, "space": record.space, "topics": deleted, "states": states}, as_json)

    _finish(_run(config_path, context, version, end), as_json)


async def _pair(spaces: OpenSpaces, space: str | None) -> tuple[SpaceRecord | None, SpaceRecord | None]:
    """The one named, else the candidate; and the one that serves."""
    from pipeline.commands._spaces import find_record

    records = await spaces.records()
    return find_record(records, space), next((one for one in records if one.state == "serving"), None)


def _run(
    config_path: str,
    context: str,
    version: int | None,
    work: Callable[[OpenSpaces], Coroutine[Any, Any, Answer]],
) -> Answer:
    import asyncio

    from pipeline.commands._spaces import open_spaces
    from pipeline.core.config import load

    async def opened() -> Answer:
        spaces = await open_spaces(load(config_path), context, version)
        try:
            return await work(spaces)
        finally:
            await spaces.close()

    return asyncio.run(opened())


def _finish(answer: Answer, as_json: bool) -> None:
    yes, shown = answer
    if as_json:
        click.echo(json.dumps(shown))
    if not yes:
        click.get_current_context().exit(1)


def _no(reason: str, as_json: bool) -> Answer:
    if not as_json:
        click.echo(reason, err=True)
    return False, {"reasons": [reason]}


def _told(shown: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Says it to a person where no program reads."""
    if not as_json:
        done = [name.replace("_", " ") for name in ("promoted", "rolled_back", "retired") if shown.get(name)]
        click.echo(f"{shown['space']}: {done[0] if done else 'nothing changed'}")
        for reason in shown.get("reasons", ()):
            click.echo(f"  {reason}")
        if "topics" in shown:
            click.echo(f"  {len(shown['topics'])} topics and {shown['states']:,} states deleted")
    return shown
