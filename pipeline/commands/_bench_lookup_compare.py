"""Lookups beside others in `ctxpipe bench lookup`: the same Redis, keys and updates for all, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from deploy.demo.lookup_load import CLOSED_CONNECTIONS
from deploy.demo.lookup_loop import PATIENCE_MS, Loop
from deploy.demo.lookup_samples import summary
from pipeline.commands._bench_lookup_world import NEAR_BYTES, OPEN_CONNECTIONS_MAX, World

if TYPE_CHECKING:
    from pipeline.commands._bench_lookup_feast import Feast

SHARES = (0.5, 0.8, 1.0, 1.2)
IN_FLIGHT = 64
OURS = "/v1/contexts/flight/{key}"
OURS_PATIENTLY: dict[str, Any] = {"path": OURS, "headers": {"x-request-timeout-ms": f"{PATIENCE_MS}"}}
"""The others know no budget: what they take longer for, they take longer for. So it shall be here; see --budget-ms."""
HOTTEST = 1_000
"""So few keys are all near after the warm-up, however the rest of the cache is used."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test: how it is started, and a load's fields of its requests."""

    name: str
    serve: Callable[[], AbstractContextManager[int]]
    request: dict[str, Any]
    labels: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """`keys` are asked for; each load goes on for `seconds` after `warm_up_s`; a capacity is the median of `rounds`."""

    world: World
    keys: int
    seconds: float
    warm_up_s: float
    rounds: int
    capacities: dict[str, float] = field(default_factory=dict)
    loads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self, feast: Feast | None) -> dict[str, Any]:
        """All keys of the result that compare."""
        targets = self._targets(feast)
        closed = self._capacities(targets)
        by_name = {target.name: target for target in targets}
        ours = self.capacities["http"]
        for name in ("http", "bare"):  # the same schedule of requests for both
            self._open_loads(by_name[name], ours)
        self._open_loads(by_name["http_without_near"], self.capacities["http_without_near"])
        if feast is not None:
            self._open_loads(by_name["feast"], self.capacities["feast"])
            self._open_loads(by_name["http"], self.capacities["feast"], "http_at_feasts_rates")
        in_process = self._in_process()
        return {
            **self._ratios(in_process, feast is not None),
            "capacities_per_s": self.capacities,
            "closed_loop": closed,
            "loads": self.loads,
            "in_process": in_process,
        }

    def _targets(self, feast: Feast | None) -> list[Target]:
        world = self.world
        targets = [
            Target("http", partial(world.serving, NEAR_BYTES), OURS_PATIENTLY, labels=True),
            Target("http_without_near", partial(world.serving, 0), OURS_PATIENTLY, labels=True),
            Target("bare", partial(world.bare, "redis-py"), {"path": "/{key}"}),
            Target("bare_on_our_wire", partial(world.bare, "wire"), {"path": "/{key}"}),
        ]
        if feast is not None:
            from deploy.demo import feast_store
            from pipeline.commands._bench_lookup_feast import request_body, serving_feast

            precomputed = {**feast.request, "body": request_body(feast_store.PRECOMPUTED)}
            serve = partial(serving_feast, world, feast)
            targets += [Target("feast", serve, feast.request), Target("feast_precomputed", serve, precomputed)]
        return targets

    def _capacities(self, targets: list[Target]) -> dict[str, Any]:
        """Closed loop: the most that comes through, in turns, so that a slow minute of the machine meets all."""
        found: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
        for number in range(self.rounds):
            for target in targets if number % 2 == 0 else reversed(targets):
                with target.serve() as port:
                    found[target.name].append(self._load(target, port, None, number))
        for name, rounds in found.items():
            self.capacities[name] = median(one["looked_up_per_s"] for one in rounds)
            self.world.tell(f"{name}: {self.capacities[name]:,.0f} lookups/s in a closed loop")
        return found

    def _open_loads(self, target: Target, capacity: float, name: str | None = None) -> None:
        with target.serve() as port:
            for share in SHARES:
                shown = self._load(target, port, share * capacity, 10)
                self.loads.setdefault(name or target.name, []).append({"share": share, **shown})

    def _load(self, target: Target, port: int, rate_per_s: float | None, seed: int) -> dict[str, Any]:
        connections = CLOSED_CONNECTIONS if rate_per_s is None else OPEN_CONNECTIONS_MAX
        request = {"keys": self.keys, "seed": seed, "connections": connections, **target.request}
        plan = self.world.plan(port, rate_per_s=rate_per_s, seconds=self.seconds, warm_up_s=self.warm_up_s, **request)
        outcome, samples = self.world.load(plan)
        shown = summary(samples, outcome.seconds)
        for name in () if target.labels else ("statuses", "rungs", "unlabelled"):
            del shown[name]
        rate = {} if rate_per_s is None else {"rate_per_s": round(rate_per_s, 1)}
        return {**rate, **shown, "load_cpu_share": outcome.cpu_share}

    def _in_process(self) -> dict[str, Any]:
        """Without HTTP: so many in flight in one process, and single lookups that the near cache answers."""
        loop = Loop(keys=self.keys, in_flight=IN_FLIGHT, seconds=self.seconds, warm_up_s=self.warm_up_s)
        one = Loop(keys=self.keys, in_flight=1, seconds=self.seconds, warm_up_s=self.warm_up_s, hottest=HOTTEST)
        world = self.world
        found = {
            "redis_py": world.loop("redis-py", loop),
            "wire": world.loop("wire", loop),
            "direct": world.loop("direct", loop),
            "direct_without_near": world.loop("direct", loop, near_bytes=0),
            "redis_py_one": world.loop("redis-py", one),
            "near_hit_one": world.loop("near", one),
        }
        for name, figures in found.items():
            world.tell(f"{name}: {figures['looked_up_per_s']:,.0f}/s in process, {figures['in_flight']} in flight")
        return found

    def _ratios(self, in_process: dict[str, Any], with_feast: bool) -> dict[str, Any]:
        capacity, loads = self.capacities, self.loads
        at_half = {name: shown[0] for name, shown in loads.items()}
        near = in_process["near_hit_one"]
        hits = near["came"].get("fresh/near", 0)
        found: dict[str, Any] = {
            "http_p50_vs_bare": _ratio(at_half["http"]["p50_ms"], at_half["bare"]["p50_ms"]),
            "http_rps_vs_bare": _ratio(capacity["http"], capacity["bare"]),
            "http_without_near_rps_vs_bare": _ratio(capacity["http_without_near"], capacity["bare"]),
            "direct_rps_vs_redis_py": _ratio(in_process["direct"]["looked_up_per_s"], in_process["redis_py"]["per_s"]),
            "direct_without_near_rps_vs_redis_py": _ratio(
                in_process["direct_without_near"]["looked_up_per_s"], in_process["redis_py"]["per_s"]
            ),
            "near_hit_p50_us": round(near["p50_ms"] * 1000, 1) if hits else None,
            "near_hit_p99_us": round(near["p99_ms"] * 1000, 1) if hits else None,
            "near_hit_share": round(hits / max(1, sum(near["came"].values())), 4),
        }
        feast: dict[str, Any] = dict.fromkeys(
            ("rps_vs_feast", "p50_vs_feast", "p99_vs_feast", "rps_vs_feast_precomputed")
        )
        if with_feast:
            ours, theirs = at_half["http_at_feasts_rates"], at_half["feast"]
            feast = {
                "rps_vs_feast": _ratio(capacity["http"], capacity["feast"]),
                "p50_vs_feast": _ratio(theirs["p50_ms"], ours["p50_ms"]),
                "p99_vs_feast": _ratio(theirs["p99_ms"], ours["p99_ms"]),
                "rps_vs_feast_precomputed": _ratio(capacity["http"], capacity["feast_precomputed"]),
            }
        return {**found, **feast}


def _ratio(one: float, other: float) -> float | None:
    return round(one / other, 2) if other else None
