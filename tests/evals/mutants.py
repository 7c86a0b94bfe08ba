"""Faults that somebody could put into the pipeline, the guard or the flow, one at a time: the gate has to catch each.

    python -m tests.evals.mutants                 # their names
    python -m tests.evals.mutants join_dropped    # the gate with it: exit code 1, and the cases that tell

A mutant changes production code in the process that runs cases (`run_suite(prepare=…)`), nothing on disk.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

import pipeline.cells
import pipeline.flow
import pipeline.guard.guard
import pipeline.guard.judging
import pipeline.guard.output
import pipeline.lookup.search_parts
import pipeline.lookup.service
import pipeline.relations
from pipeline import rows
from pipeline.guard.breaker import Breaker, Permit
from pipeline.guard.ladder import end_s, steps_of
from pipeline.guard.strict_json import InvalidOutput, _balanced
from pipeline.guard.wire import checked
from pipeline.lookup.labels import answer_of
from pipeline.lookup.principal import Principal
from pipeline.lookup.ranking import by_vector
from pipeline.lookup.service import LookupService, LookupUnavailable
from pipeline.relations import memberships
from pipeline.stores.memory import MemoryRows
from pipeline.stores.store import RowOutcome
from schemas.event import VERSION_LENGTH
from tests.evals import decisions, orchestrator

SUITE = Path(__file__).parent


def change(owner: Any, name: str, value: Any) -> None:
    """Raises AttributeError for what is not there (any more): a mutant that changes nothing would prove nothing."""
    getattr(owner, name)
    setattr(owner, name, value)


def join_dropped() -> None:
    """What was joined last to a row is not kept in its relation: later changes there never reach it."""
    change(pipeline.flow, "memberships", lambda *given: memberships(*given)[:-1])


def aggregate_off_by_one() -> None:
    """Where a column is counted, each row counts twice."""
    count = pipeline.relations._count

    def twice(counter: Any, group: bytes, field: bytes, values: Any, counters: list[Any], distincts: list[Any]) -> None:
        count(counter, group, field, values, counters, distincts)
        if counter.function == "count" and counter.column is not None and counters and counters[-1] == (field, 1):
            counters[-1] = (field, 2)

    change(pipeline.relations, "_count", twice)


def older_version_wins() -> None:
    """Whatever arrives last is taken for the newest."""
    arrivals = itertools.count(1)
    write_of = rows.write_of

    def by_arrival(change: rows.Change) -> Any:
        change.version = f"{next(arrivals):0{VERSION_LENGTH}d}"
        return write_of(change)

    change(rows, "write_of", by_arrival)


def redelivery_ignored() -> None:
    """A record that comes again is passed over, although a crash may have left undone what follows from it."""
    apply = MemoryRows._apply

    def once(self: MemoryRows, write: Any, touched: set[tuple[str, str]]) -> RowOutcome:
        stored = self.tables.get(write.table, {}).get(write.key)
        again = stored is not None and stored.version == write.version
        outcome = apply(self, write, touched)
        return RowOutcome(False, []) if again else outcome

    change(MemoryRows, "_apply", once)


def late_cell_wins() -> None:
    """Of a column's values the one that arrives last stays, whenever it was written."""
    change(pipeline.cells, "_winner", lambda kept, cell: cell)


def delete_resurrects() -> None:
    """A deleted row leaves no trace, so that any older version of it is new."""
    apply = MemoryRows._apply

    def forgetful(self: MemoryRows, write: Any, touched: set[tuple[str, str]]) -> Any:
        stored = self.tables.get(write.table, {}).get(write.key)
        if stored is not None and stored.values is None and write.values is not None:
            del self.tables[write.table][write.key]
        return apply(self, write, touched)

    change(MemoryRows, "_apply", forgetful)


def stale_served_as_fresh() -> None:
    """Answers say fresh whatever their age."""

    def fresh(*given: Any) -> Any:
        answer, meta = answer_of(*given)
        return (msgspec.structs.replace(answer, status="fresh") if answer.status == "stale" else answer), meta

    change(pipeline.lookup.service, "answer_of", fresh)


def tenant_filter_gone() -> None:
    """Everybody sees everybody's bundles."""
    change(Principal, "tenant_in", lambda self, spec: None)


def default_bundle_skipped() -> None:
    """Without its store a lookup is an error, although the context has a default bundle."""

    def none(self: LookupService, query: Any, key: str, now_us: int, error: Exception | None) -> Any:
        raise LookupUnavailable("the store did not answer") from error

    change(LookupService, "_default", none)


def wrong_tie_break() -> None:
    """Hits with equal scores come with the greater key first."""

    def reversed_ties(hits: Sequence[Any]) -> Any:
        found = sorted(by_vector(hits), key=lambda ranked: ranked.key, reverse=True)
        return sorted(found, key=lambda ranked: -ranked.score)

    change(pipeline.lookup.search_parts, "by_vector", reversed_ties)


def other_endpoints_skipped() -> None:
    """Only the first endpoint of a route is ever asked."""
    change(pipeline.guard.guard, "steps_of", lambda *given: steps_of(*given)[:1])


def rate_limit_ignored() -> None:
    """After a rate limit the next provider is asked as after any other fault, not the local model."""
    change(pipeline.guard.guard, "local_first", list)


def never_retried() -> None:
    """No endpoint gets a second try."""
    change(pipeline.guard.guard, "RETRIED", frozenset())


def deadline_ignored() -> None:
    """Calls go on as if they had a minute more."""
    change(pipeline.guard.guard, "end_s", lambda began_s, deadline_s: end_s(began_s, deadline_s) + 60)


def breaker_never_opens() -> None:
    """An endpoint that fails is asked again and again."""
    change(Breaker, "admit", lambda self: Permit(self.generation, probe=False))


def validation_loosened() -> None:
    """Of two values the first is taken, and what was cut counts as whole."""

    def first_value(text: str) -> str | None:
        return next(iter(_balanced(text) or ()), None)

    def lenient(envelope: Any, request: Any) -> Any:
        try:
            return checked(envelope, request)
        except InvalidOutput:
            if not envelope.cut:
                raise
            return request.output.check(envelope.text), ()

    change(pipeline.guard.output, "mended", first_value)
    change(pipeline.guard.judging, "checked", lenient)


def citations_not_checked() -> None:
    """The flow believes whatever a model cites."""
    change(decisions, "mistakes_of_citations", lambda citations, seen: [])


def stale_context_rebooks() -> None:
    """The flow takes a context that may be out of date for one that is not."""
    look_up = orchestrator.look_up

    async def trusting(*given: Any) -> orchestrator.Seen:
        seen = await look_up(*given)
        return replace(seen, stale=False)

    change(orchestrator, "look_up", trusting)
    with_others = orchestrator.with_others

    async def trusting_others(*given: Any) -> orchestrator.Seen:
        return replace(await with_others(*given), stale=False)

    change(orchestrator, "with_others", trusting_others)


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        join_dropped,
        aggregate_off_by_one,
        older_version_wins,
        redelivery_ignored,
        late_cell_wins,
        delete_resurrects,
        stale_served_as_fresh,
        tenant_filter_gone,
        default_bundle_skipped,
        wrong_tie_break,
        other_endpoints_skipped,
        rate_limit_ignored,
        never_retried,
        deadline_ignored,
        breaker_never_opens,
        validation_loosened,
        citations_not_checked,
        stale_context_rebooks,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evals.mutants", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(MUTANTS), help="all names without one")
    parser.add_argument("--only", action="append", metavar="ID", help="as of `ctxpipe eval run`")
    parser.add_argument("--jobs", type=int, default=None, help="processes; default: one per core")
    asked = parser.parse_args()
    if asked.name is None:
        told = (f"{name}: {(mutant.__doc__ or '').strip()}" for name, mutant in MUTANTS.items())
        sys.stdout.write("\n".join(told) + "\n")
        return 0
    judgement = gate(asked.name, asked.only, asked.jobs)
    lines = [f"{flip.state}: {flip.id}" for flip in judgement.flips]
    lines += [
        f"{asked.name}: {judgement.verdict}, {len(judgement.flips)} of {judgement.cases} cases",
        *judgement.reasons,
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(judgement.exit_code)


def gate(name: str, only: Sequence[str] | None = None, jobs: int | None = None) -> Any:
    """The judgement of `ctxpipe eval run` on the suite with this mutant in it."""
    from pipeline.commands._eval_running import lower
    from pipeline.evaluation.baseline import FILE, read_baseline
    from pipeline.evaluation.gate import judged
    from pipeline.evaluation.runner import run_suite
    from pipeline.evaluation.suite import read_suite

    suite = read_suite(SUITE)
    baseline = read_baseline(SUITE / FILE)
    run = run_suite(suite, only=only, jobs=jobs, prepare=f"{__spec__.name}:{name}")
    whys = {case.id: case.why for case in suite.cases}
    return judged(run, whys, suite.digest, baseline, lower=lower, whole=not only)


if __name__ == "__main__":
    sys.exit(main())
