"""What calls go by from one swap to the next: a guard with its routes, and per task what is watched and copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.core.clock import Clock
from pipeline.guard.budgets import EVERYBODY
from pipeline.guard.client import ModelClient
from pipeline.guard.config import Endpoint, GuardConfig
from pipeline.guard.guard import Guard
from pipeline.guard.prices import PriceTable
from pipeline.guard.routing.config import Candidate, TaskRouting
from pipeline.guard.routing.pairs import Pairs, Score
from pipeline.guard.routing.shadow import Shadow
from pipeline.guard.routing.state import Standing
from pipeline.guard.routing.window import Window
from pipeline.guard.secrets import Secrets


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """A task of the file. `window` None: nothing is watched, because there are no limits, or nobody to go back to."""

    task: str
    standing: Standing
    endpoint: Endpoint
    window: Window | None
    shadow: Shadow | None

    @property
    def watched_until_us(self) -> float:
        return 0 if self.window is None else self.standing.since_us + self.window.limits.watch_s * 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """Never changed: a call keeps the one that it began with."""

    number: int
    guard: Guard
    watched: Mapping[str, Watched] = field(default_factory=dict)
    own_routes: frozenset[str] = frozenset()
    """Tasks that the guard itself has a route for: `*` is not theirs."""

    def watched_of(self, task: str) -> Watched | None:
        found = self.watched.get(task)
        return self.watched.get(EVERYBODY) if found is None and task not in self.own_routes else found

    @property
    def shadows(self) -> list[Shadow]:
        return [one.shadow for one in self.watched.values() if one.shadow is not None]


class Builder:
    """Makes a generation out of the one before: windows and shadows of what has not changed go on."""

    def __init__(
        self,
        config: GuardConfig,
        client: ModelClient,
        pairs: Pairs | None,
        scores: Mapping[str, Score],
        *,
        prices: PriceTable,
        clock: Clock,
        chance: Callable[[], float],
    ) -> None:
        self._config, self._client, self._pairs, self._scores = config, client, pairs, scores
        self._prices, self._clock, self._chance = prices, clock, chance
        self._endpoints = {endpoint.name: endpoint for endpoint in config.endpoints}
        keys = (one.api_key for one in config.endpoints)
        self._secrets = Secrets(key.get_secret_value() for key in keys if key is not None)

    def next(
        self, last: Generation, standings: Mapping[str, Standing], routings: Mapping[str, TaskRouting]
    ) -> Generation:
        routes = {**self._config.routes, **{task: standing.route for task, standing in standings.items()}}
        watched = {
            task: self._watched(task, standing, routings.get(task), last.watched.get(task))
            for task, standing in standings.items()
        }
        return Generation(last.number + 1, last.guard.with_routes(routes), watched, frozenset(self._config.routes))

    def _watched(self, task: str, standing: Standing, routing: TaskRouting | None, last: Watched | None) -> Watched:
        window = None
        if standing.limits.any and standing.previous is not None:
            same = last is not None and last.standing.fingerprint == standing.fingerprint
            kept = last.window if last is not None and same else None
            window = kept if kept is not None and kept.limits == standing.limits else Window(standing.limits)
        endpoint = self._endpoints[standing.identity.endpoint]
        candidate = None if routing is None else routing.candidate
        shadow = self._shadow(task, candidate, endpoint, None if last is None else last.shadow)
        return Watched(task, standing, endpoint, window, shadow)

    def _shadow(self, task: str, candidate: Candidate | None, active: Endpoint, last: Shadow | None) -> Shadow | None:
        if candidate is None or self._pairs is None or candidate.endpoint == active.name:
            return None
        if last is not None and last.candidate == candidate:
            return last
        return Shadow(
            candidate,
            self._endpoints[candidate.endpoint],
            self._config,
            self._client,
            self._pairs,
            self._scores.get(task),
            prices=self._prices,
            clock=self._clock,
            chance=self._chance,
            secrets=self._secrets,
        )
