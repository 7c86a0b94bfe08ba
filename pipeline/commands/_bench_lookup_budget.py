"""The budget that callers declare, in `ctxpipe bench lookup --budget-ms`: under load, under too much, and with a Redis
that stands still."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.demo.lookup_load import CLOSED_CONNECTIONS, Outcome, Plan
from deploy.demo.lookup_loop import PATIENCE_MS
from deploy.demo.lookup_samples import Sample, counts, quantiles, summary
from pipeline.commands._bench_lookup_compare import OURS
from pipeline.commands._bench_lookup_world import NEAR_BYTES, OPEN_CONNECTIONS_MAX, World

BUSY, TOO_MUCH = 0.8, 1.5
SCHEDULING_MS = 2.0
"""What a server may take longer than the budget, because its process was not let go at once."""
FROZEN_S = 5.0


@dataclass(frozen=True, slots=True)
class Budget:
    """Every request declares `budget_ms`. `near_bytes` as in the configuration of the server."""

    world: World
    keys: int
    seconds: float
    warm_up_s: float
    budget_ms: float
    near_bytes: int = NEAR_BYTES

    def run(self) -> dict[str, Any]:
        """At 80% and at 150% of the capacity, and at 80% with Redis frozen in the middle."""
        with self.world.serving(self.near_bytes) as port:
            _, samples = self.world.load(self._plan(port, None, self.seconds))
            capacity = max(1.0, sum(sample.looked_up for sample in samples) / self.seconds)
            self.world.tell(f"{capacity:,.0f} lookups/s in a closed loop")
            busy = self._plan(port, BUSY * capacity, self.seconds)
            found = {"busy": self._shares(self.world.load(busy)[1], busy)}
            too_much = self._plan(port, TOO_MUCH * capacity, self.seconds)
            found["too_much"] = self._shares(self.world.load(too_much)[1], too_much)
            found["frozen"] = self._frozen(port, BUSY * capacity)
        return {"budget_ms": self.budget_ms, "capacity_per_s": round(capacity, 1), **found}

    def _plan(self, port: int, rate_per_s: float | None, seconds: float) -> Plan:
        return self.world.plan(
            port,
            OURS,
            self.keys,
            # So many at once take longer than a short budget: a capacity is what comes through without one.
            headers={"x-request-timeout-ms": f"{PATIENCE_MS if rate_per_s is None else self.budget_ms:g}"},
            rate_per_s=rate_per_s,
            connections=CLOSED_CONNECTIONS if rate_per_s is None else OPEN_CONNECTIONS_MAX,
            seconds=seconds,
            warm_up_s=self.warm_up_s,
        )

    def _shares(self, samples: Sequence[Sample], plan: Plan) -> dict[str, Any]:
        """`within_budget` of all; of those that were admitted, and so not refused, `admitted_within_budget`."""
        admitted = [sample for sample in samples if not sample.refused]
        return {
            "rate_per_s": round(plan.rate_per_s or 0.0, 1),
            **summary(samples, plan.seconds),
            "within_budget": _share(samples, self.budget_ms),
            "within_budget_without_lateness": _share(samples, self.budget_ms, own=True),
            "admitted_within_budget": _share(admitted, self.budget_ms),
            "admitted_within_budget_without_lateness": _share(admitted, self.budget_ms, own=True),
            "refused_share": round(1 - len(admitted) / max(1, len(samples)), 5),
            "server_ms": quantiles(sample.server_ms for sample in samples if sample.server_ms >= 0),
        }

    def _frozen(self, port: int, rate_per_s: float) -> dict[str, Any]:
        frozen_s = min(FROZEN_S, self.seconds)
        plan = self._plan(port, rate_per_s, self.seconds + frozen_s + self.seconds)
        load = self.world.begin_load(plan)
        time.sleep(self.warm_up_s + self.seconds)
        stopped_s = time.monotonic()
        self.world.redis.pause()
        time.sleep(frozen_s)
        resumed_s = time.monotonic()
        self.world.redis.resume()
        outcome, samples = self.world.await_load(load, plan)
        return self._judged(outcome, samples, stopped_s, resumed_s)

    def _judged(
        self, outcome: Outcome, samples: Sequence[Sample], stopped_s: float, resumed_s: float
    ) -> dict[str, Any]:
        """`later_than_allowed`: seen from the load without its own lateness; `…_by_server_timing`: by what the server
        itself says. `quiet_again_s`: after that time no answer was anything but fresh, or late."""
        allowed_ms = self.budget_ms + SCHEDULING_MS
        during = [sample for sample in samples if stopped_s <= sample.due_s < resumed_s]
        after = [sample for sample in samples if sample.due_s >= resumed_s]
        fresh = [sample for sample in after if _undisturbed(sample, allowed_ms)]
        others = [sample for sample in after if not _undisturbed(sample, allowed_ms)]
        by_store = [sample for sample in fresh if sample.label == "fresh/store"]
        return {
            "rate_per_s": round(len(samples) / outcome.seconds, 1),
            "frozen_s": round(resumed_s - stopped_s, 3),
            "latest_ms": round(max((sample.latency_ms for sample in samples), default=0.0), 3),
            "latest_without_lateness_ms": round(max((sample.own_ms for sample in samples), default=0.0), 3),
            "latest_by_server_timing_ms": round(max((sample.server_ms for sample in samples), default=0.0), 3),
            "later_than_allowed": sum(sample.own_ms > allowed_ms for sample in samples),
            "later_than_allowed_with_lateness": sum(sample.latency_ms > allowed_ms for sample in samples),
            "later_than_allowed_by_server_timing": sum(sample.server_ms > allowed_ms for sample in samples),
            "lateness_ms": quantiles((sample.seen_s - sample.due_s) * 1000 for sample in samples),
            "all": {"requests": len(samples), **counts(samples)},
            "while_frozen": {
                "requests": len(during),
                **counts(during),
                "own_ms": quantiles(sample.own_ms for sample in during),
                "server_ms": quantiles(sample.server_ms for sample in during if sample.server_ms >= 0),
            },
            "first_from_store_s": _since(resumed_s, by_store[:1]),
            "quiet_again_s": _since(resumed_s, others[-1:]) or 0.0,
            "while_recovering": counts(others),
        }


def _undisturbed(sample: Sample, allowed_ms: float) -> bool:
    return sample.label.startswith("fresh/") and sample.own_ms <= allowed_ms


def _since(moment_s: float, samples: Sequence[Sample]) -> float | None:
    return round(samples[0].done_s - moment_s, 3) if samples else None


def _share(samples: Sequence[Sample], limit_ms: float, own: bool = False) -> float:
    """Of these requests, those that had an answer, labelled or a refusal, within so long."""
    good = sum(sample.code > 0 and (sample.own_ms if own else sample.latency_ms) <= limit_ms for sample in samples)
    return round(good / max(1, len(samples)), 5)
