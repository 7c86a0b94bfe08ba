"""Checks of a replayed log and of a retrieval: bundles' digests and their twins', recall, nDCG, the exact order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from pipeline.evaluation.checks.check import Check, Named, failed, passed, verdict
from pipeline.evaluation.checks.json_values import is_list, shown
from pipeline.evaluation.digests import digest_of
from pipeline.evaluation.values import CheckResult, Expectation, Observed
from pipeline.ops.space_measures import ndcg_at, recall_at
from schemas.yaml_file import suggestion

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TOLD_MAX = 3
DEAD_LETTERS = "!dead_letters"
"""`context!dead_letters` has no digest, but how many records were set aside, by reason."""
K = 10
"""How many hits count where a check does not say."""


def bundles(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    """Every twin has to have the digests of the log as it stands; with a value, those have to be the ones expected."""
    wrong = [*_twin_mistakes(observed.digests), *_digest_mistakes(expected.value, observed.digests)]
    more = f"; and {len(wrong) - _TOLD_MAX} more" if len(wrong) > _TOLD_MAX else ""
    return verdict(expected, "; ".join(wrong[:_TOLD_MAX]) + more)


def recall(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    return _measured(expected, observed, "recall", recall_at)


def ndcg(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    return _measured(expected, observed, "nDCG", ndcg_at)


def order(expected: Expectation, observed: Observed, suite: Named) -> CheckResult:
    """The first hits are exactly these; of those with equal scores the smaller key is first."""
    hits = list(observed.hits)[: expected.k or len(expected.value)]
    for (one, score), (other, next_score) in pairwise(hits):
        if score == next_score and one > other:
            return failed(expected, f"{one} and {other} have the same score {score:g}, and the greater key is first")
    keys = [key for key, _ in hits]
    if keys == list(expected.value):
        return passed(expected)
    pairs = zip(keys, expected.value, strict=False)
    place = next((i for i, (came, wanted) in enumerate(pairs) if came != wanted), min(len(keys), len(expected.value)))
    came, wanted = (shown(some[place]) if place < len(some) else "nothing" for some in (keys, list(expected.value)))
    return failed(expected, f"hit {place + 1} is {came}, expected {wanted}")


def _measured(expected: Expectation, observed: Observed, name: str, measure: Any) -> CheckResult:
    k, floor = expected.k or K, expected.value.get("floor", 0.0)
    ranking = list(dict.fromkeys(key for key, _ in observed.hits))
    score = float(measure(ranking, _grades(expected.value["relevant"]), k))
    if len(ranking) < len(observed.hits):
        return failed(expected, "a key was found twice", score)
    if score + 1e-12 >= floor:
        return passed(expected, score)
    return failed(expected, f"{name}@{k} is {score:.4f}, at least {floor:g} is expected", score)


def _grades(relevant: Any) -> dict[str, float]:
    return (
        {key: float(grade) for key, grade in relevant.items()}
        if isinstance(relevant, Mapping)
        else dict.fromkeys(relevant, 1.0)
    )


def _twin_mistakes(digests: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for key in sorted(digests):
        plain = digests[key].get("", "")
        for twin, digest in sorted(digests[key].items()):
            if digest != plain:
                yield f"{key} differs when {twin}: {_short(digest)}, otherwise {_short(plain)}"


def _digest_mistakes(wanted: Any, digests: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    came = {key: twins.get("", "") for key, twins in digests.items()}
    if isinstance(wanted, str):
        whole = digest_of(came)
        if whole != wanted:
            yield f"all {len(came)} bundles together are {_short(whole)}, expected {_short(wanted)}"
        return
    for key in sorted({*came, *wanted} if wanted is not None else ()):
        if key not in came:
            yield f"{key} is not there{suggestion(key, came) if len(came) < 1000 else ''}"
        elif key not in wanted:
            yield f"{key} is there, and is not expected"
        elif came[key] != wanted[key]:
            yield f"{key} is {_short(came[key])}, expected {_short(wanted[key])}"


def _short(digest: str) -> str:
    return f"{digest[:12]}…" if digest else "deleted"


def _bundle_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    if value is None or (isinstance(value, str) and _DIGEST.fullmatch(value)):
        return
    if not isinstance(value, Mapping):
        yield "value has to be the digest of all bundles together, or an object of context/key → digest"
        return
    for key, digest in value.items():
        context, dead, _ = key.partition("/")[0].partition(DEAD_LETTERS)
        if suite.specs and context not in suite.specs:
            yield f"{key!r} names no context of the suite{suggestion(context, suite.specs)}"
        if dead:
            continue
        if not isinstance(digest, str) or (digest and not _DIGEST.fullmatch(digest)):
            yield f'{key} has to be a sha256 of 64 hex digits, or "" for a deleted one, not {shown(digest)}'


def _measure_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    if not isinstance(value, Mapping) or "relevant" not in value:
        yield 'value has to be such as {"relevant": ["key", …], "floor": 0.8}, or with grades {"key": 3, …}'
        return
    known = ("relevant", "floor")
    yield from (f"unknown key {key!r}{suggestion(key, known)}" for key in sorted(value.keys() - set(known)))
    relevant, floor = value["relevant"], value.get("floor", 0.0)
    grades = relevant.values() if isinstance(relevant, Mapping) else ()
    if not isinstance(relevant, Mapping) and not (is_list(relevant) and all(isinstance(one, str) for one in relevant)):
        yield f"relevant has to be keys, or keys with grades, not {shown(relevant)}"
    elif not relevant:
        yield "nothing is relevant, so that nothing would be measured"
    if any(isinstance(one, bool) or not isinstance(one, int | float) or one < 0 for one in grades):
        yield "grades have to be numbers that are not negative"
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1:
        yield f"floor has to be between 0 and 1, not {shown(floor)}"


def _order_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    value = expected.value
    if not is_list(value) or not all(isinstance(one, str) for one in value):
        yield f"value has to be the keys of the first hits in their order, not {shown(value)}"


CHECKS = (
    Check("bundles", ("replay",), bundles, ("value",), (), _bundle_mistakes),
    Check("recall", ("retrieval",), recall, ("value", "k"), ("value",), _measure_mistakes),
    Check("ndcg", ("retrieval",), ndcg, ("value", "k"), ("value",), _measure_mistakes),
    Check("order", ("retrieval",), order, ("value", "k"), ("value",), _order_mistakes),
)
