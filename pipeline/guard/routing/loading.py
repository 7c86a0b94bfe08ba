"""Reads the routing file and what it names whenever something about them has changed, and decides what comes of it.

Reading blocks; deciding is pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.guard.config import Endpoint, GuardConfig
from pipeline.guard.evidence import Evidence
from pipeline.guard.routing.config import RoutingConfig, TaskRouting, base_route, route_of
from pipeline.guard.routing.deciding import Accepted, Refusal, Wanted, decide
from pipeline.guard.routing.file import RoutingFile, read_routing
from pipeline.guard.routing.proof import evidence_path, read_evidence
from pipeline.guard.routing.state import Before, RoutingState, Standing, identity_of

Outcome = Accepted | Literal["held"]
"""held: the change was taken back before, and what was in force stays."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the files say. `evidence` by task, of those that name one."""

    file: RoutingFile
    evidence: Mapping[str, Evidence | Refusal]


@dataclass(frozen=True, slots=True)
class Decision:
    """What of a snapshot comes into force, all of it or, where anything is refused, nothing. `told` by task: what a
    person has to know."""

    standings: Mapping[str, Standing]
    outcomes: Mapping[str, Outcome]
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)


class Source:
    """The routing file and its evidence on disk. All methods block."""

    def __init__(self, path: Path, guard: GuardConfig) -> None:
        self.path, self._guard = path, guard
        self._evidence: tuple[Path, ...] = ()

    def stamp(self) -> bytes:
        """Differs when the content of any of the files does; touching one changes nothing."""
        return b"".join(_digest(path) for path in (self.path, *self._evidence))

    def read(self) -> Snapshot:
        """Raises ConfigError with all mistakes of the routing file; evidence that can't be used is in the snapshot."""
        file = read_routing(self.path, self._guard)
        named = {name: task.evidence for name, task in file.config.tasks.items() if task.evidence is not None}
        paths = {name: evidence_path(self.path, one) for name, one in named.items()}
        self._evidence = tuple(paths.values())
        return Snapshot(file, {name: read_evidence(paths[name], one.sha256) for name, one in named.items()})


def decided(
    snapshot: Snapshot, guard: GuardConfig, state: RoutingState, now_us: int, priced: Callable[[Endpoint], bool]
) -> Decision:
    """What is in force → what may be. `priced`: whether what an endpoint costs is known. A task may leave the file only
    where the guard's own route begins with who is in force: half a file is one with fewer tasks, too."""
    standings: dict[str, Standing] = {}
    outcomes: dict[str, Outcome] = {}
    refused: dict[str, Refusal] = {}
    told: dict[str, str] = {}
    config = snapshot.file.config
    for task in sorted({*config.tasks, *state.tasks}):
        wanted = _wanted(task, config, guard)
        if isinstance(wanted, Refusal):
            refused[task] = wanted
            continue
        standing = state.tasks.get(task)
        taken_back = state.was_taken_back(task, wanted.fingerprint)
        if taken_back is not None and standing is not None and standing.identity != wanted.active:
            standings[task], outcomes[task] = standing, "held"
            told[task] = f"{taken_back.endpoint} was taken back: {taken_back.why}; new evidence may promote it again"
            continue
        if task not in config.tasks and standing is not None and standing.identity != wanted.active:
            told_of = (
                f"the file no longer names {task!r}, and {standing.identity.endpoint} is in force: name who answers"
            )
            refused[task] = Refusal("no_evidence", told_of)
            continue
        found = _unpriced(wanted, guard, priced) or decide(
            wanted, standing, snapshot.evidence.get(task), config.demands
        )
        if isinstance(found, Refusal):
            refused[task] = found
            continue
        outcomes[task] = found
        if task in config.tasks:
            standings[task] = _standing(wanted, found, standing, guard, snapshot.evidence.get(task), now_us)
    return Decision(standings, outcomes, refused, told)


def usable(state: RoutingState, guard: GuardConfig) -> RoutingState:
    """Without those to go back to that the guard's endpoints no longer are."""
    endpoints = {endpoint.name: identity_of(endpoint) for endpoint in guard.endpoints}

    def there(before: Before) -> bool:
        names = set(before.route.endpoints)
        return names <= endpoints.keys() and endpoints[before.identity.endpoint] == before.identity

    tasks = {
        task: one if one.previous is None or there(one.previous) else one.model_copy(update={"previous": None})
        for task, one in state.tasks.items()
    }
    return state.model_copy(update={"tasks": tasks})


def gone(standings: Mapping[str, Standing], guard: GuardConfig) -> list[str]:
    """What is in force and can't be any more, because the guard's endpoints are others; a sentence each."""
    endpoints = {endpoint.name: endpoint for endpoint in guard.endpoints}
    found = []
    for task, standing in standings.items():
        missing = [name for name in standing.route.endpoints if name not in endpoints]
        if missing:
            found.append(f"task {task!r}: in force is a ladder with {', '.join(missing)}, which the guard has no more")
        elif identity_of(endpoints[standing.identity.endpoint]) != standing.identity:
            now, then = endpoints[standing.identity.endpoint].model, standing.identity.model
            found.append(f"task {task!r}: in force is {standing.identity.endpoint} with {then}, it asks {now} now")
    return found


def _wanted(task: str, config: RoutingConfig, guard: GuardConfig) -> Wanted | Refusal:
    endpoints = {endpoint.name: endpoint for endpoint in guard.endpoints}
    base = base_route(guard, task)
    routing = config.tasks.get(task)
    if routing is None:
        if base is None:
            return Refusal("no_route", f"the file no longer names {task!r}, and the guard has no route for it; name it")
        routing = TaskRouting(active=base.primary)
    previous = None if routing.previous is None else identity_of(endpoints[routing.previous])
    begins_with = None if base is None else base.primary
    return Wanted(task, routing, identity_of(endpoints[routing.active]), previous, begins_with)


def _unpriced(wanted: Wanted, guard: GuardConfig, priced: Callable[[Endpoint], bool]) -> Refusal | None:
    """A limit on what nobody knows would be kept always, or never."""
    endpoints = {endpoint.name: endpoint for endpoint in guard.endpoints}
    candidate = wanted.routing.candidate
    limited = []
    if wanted.routing.limits.cost_per_call_max is not None:
        limited.append(("limits.cost_per_call_max", wanted.active.endpoint))
    if candidate is not None and candidate.cost_per_hour_max is not None:
        limited.append(("candidate.cost_per_hour_max", candidate.endpoint))
    for where, name in limited:
        if not priced(endpoints[name]):
            model = endpoints[name].price_name
            return Refusal("unpriced", f"{where} is set, and the price table has no price for {model!r}; add it there")
    return None


def _standing(
    wanted: Wanted,
    outcome: Accepted,
    before: Standing | None,
    guard: GuardConfig,
    evidence: Evidence | Refusal | None,
    now_us: int,
) -> Standing:
    base = base_route(guard, wanted.task)
    previous: Before | None = None
    since_us = now_us
    if outcome == "unchanged" and before is not None:
        previous, since_us = before.previous, before.since_us
    elif outcome in ("promoted", "overridden") and before is not None:
        previous = Before(identity=before.identity, route=before.route)
    elif outcome == "first":
        previous = _first_previous(wanted, guard, evidence)
    return Standing(
        identity=wanted.active,
        route=route_of(wanted.routing, base),
        since_us=since_us,
        fingerprint=wanted.fingerprint,
        previous=previous,
        limits=wanted.routing.limits,
    )


def _first_previous(wanted: Wanted, guard: GuardConfig, evidence: Evidence | Refusal | None) -> Before | None:
    """Who can be gone back to where this process never saw anybody else: whom the file names, or the evidence."""
    endpoints: dict[str, Endpoint] = {endpoint.name: endpoint for endpoint in guard.endpoints}
    named = wanted.routing.previous or (evidence.active.endpoint if isinstance(evidence, Evidence) else None)
    if named is None or named not in endpoints or named == wanted.active.endpoint:
        return None
    route = route_of(wanted.routing, base_route(guard, wanted.task), named)
    return Before(identity=identity_of(endpoints[named]), route=route)


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b"-"


def mistakes_of(decision: Decision, file: RoutingFile) -> list[str]:
    """All that is refused, with the lines of the file."""
    return [f"{file.place(task, 'active')}: task {task!r}: {one.told}" for task, one in decision.refused.items()]
