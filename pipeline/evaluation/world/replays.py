"""Replay cases: one log, several tellings → a digest of every bundle by telling, which must all be the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

from pipeline.core.errors import Poison
from pipeline.evaluation.digests import digest_of, sha256
from pipeline.evaluation.values import Case, Twin
from pipeline.evaluation.world.files import WorldError
from pipeline.evaluation.world.filled import Filled, SuiteFiles, log_of, plan_of
from pipeline.evaluation.world.replay import Replayed, live_and_gone, redelivered, reordered, restarted, straight
from pipeline.plan import Plan
from pipeline.text import decode_bundle
from schemas.record import Record

Telling = Callable[[Plan, Sequence[Record], Random], Awaitable[Replayed]]
TELLINGS: Mapping[Twin, Telling] = {"redelivered": redelivered, "reordered": reordered, "restarted": restarted}
TIMES: Mapping[Twin, int] = {"redelivered": 1, "reordered": 3, "restarted": 1}
"""Each with a seed of its own, drawn from the case's id."""
DEAD_LETTERS = "!dead_letters"

_Told = dict[str, tuple[str, bytes]]
"""By bundle key: digest and bytes; ("", b"") of one that is gone."""


async def replayed(suite: SuiteFiles, case: Case) -> dict[str, dict[str, str]]:
    """By "context/key", then by telling, the digest of the bundle (digests.digest_of); "" where the bundle is gone. The
    telling "" is the log as it stands, the others are the case's twins. Every context of the suite that reads one of
    the log's topics is replayed.

    A twin that ends with the same values in other bytes has another digest: equal bytes are promised. Records that were
    set aside are at "context!dead_letters", as text: how many, by reason. Raises WorldError.
    """
    if case.context.events is None:
        raise WorldError([f'{case.id}: a replay needs a log: context: {{"events": "events/….jsonl"}}'])
    log = log_of(suite, case)
    topics = {record.topic for record in log}
    found: dict[str, dict[str, str]] = {}
    for context in suite.specs:
        plan = plan_of(suite, context)
        if topics.isdisjoint(plan.topics):
            continue
        base = await straight(plan, log)
        told = {"": [base]}
        for twin in case.twins:
            seeds = [f"{case.id}/{context}/{twin}/{number}" for number in range(TIMES[twin])]
            told[twin] = [await TELLINGS[twin](plan, log, Random(seed)) for seed in seeds]
        found |= _digests(plan, told)
    return found


def _digests(plan: Plan, told: Mapping[str, Sequence[Replayed]]) -> dict[str, dict[str, str]]:
    context = plan.spec.context
    bundles = {twin: [_told(plan, one) for one in ends] for twin, ends in told.items()}
    base = bundles[""][0]
    keys = sorted({key for ends in bundles.values() for one in ends for key in one})
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        expected = base.get(key, ("", b""))
        found[f"{context}/{key}"] = {
            twin: _worst(expected, [one.get(key, ("", b"")) for one in ends]) for twin, ends in bundles.items()
        }
    letters = {twin: [_letters(one) for one in ends] for twin, ends in told.items()}
    if any(one for ends in letters.values() for one in ends):
        expected_letters = letters[""][0]
        found[f"{context}{DEAD_LETTERS}"] = {
            twin: next((one for one in ends if one != expected_letters), expected_letters)
            for twin, ends in letters.items()
        }
    return found


def _worst(expected: tuple[str, bytes], ends: Sequence[tuple[str, bytes]]) -> str:
    """The digest that all share; else the first that differs."""
    for digest, body in ends:
        if digest != expected[0]:
            return digest
        if body != expected[1]:
            return f"{digest} in other bytes: {sha256(body)[:16]}"
    return expected[0]


def _told(plan: Plan, end: Replayed) -> _Told:
    filled = Filled(plan, end.values)
    found: _Told = {}
    for key, stored in live_and_gone(end).items():
        body = None if stored is None else filled.body(key)
        found[key] = ("", b"") if body is None else (_digest(body), body)
    return found


def _digest(body: bytes) -> str:
    try:
        return digest_of(decode_bundle(body))
    except (Poison, ValueError):
        return sha256(body)  # a column of JSON that nobody can read travels as it is


def _letters(end: Replayed) -> str:
    counted = Counter(reason for *_, reason in end.letters)
    return "; ".join(f"{count} × {reason}" for reason, count in sorted(counted.items()))
