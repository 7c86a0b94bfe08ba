"""A routed guard on a virtual clock, with files in a folder, and evidence that proves what a test wants it to."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.guard.config import BreakerConfig, Endpoint, GuardConfig, Route
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.evidence import Evidence
from pipeline.guard.routing.pairs import MemoryPairs, Score
from pipeline.guard.routing.routed_guard import RoutedGuard
from pipeline.guard.values import ModelRequest, RawAnswer
from tests.support.guard_script import ANSWER, PRICES, VALID, ScriptedClient, VirtualClock, says

SUITE_DIGEST = "5" * 64
GOOD = says(VALID)


def proves(active: str = "old", candidate: str = "new", task: str = "t", **more: Any) -> Evidence:
    """Evidence of a candidate that is better; `more` is what it says instead."""
    return Evidence.model_validate(
        {
            "made_on": "2026-11-30",
            "task": task,
            "suite": "flights",
            "suite_digest": SUITE_DIGEST,
            "active": {"endpoint": active, "model": "m", "results_sha256": "a" * 64},
            "candidate": {"endpoint": candidate, "model": "m", "results_sha256": "b" * 64},
            "metric": "score",
            "claim_points": 0,
            "method": "mcnemar",
            "pairs": 500,
            "groups": 40,
            "difference": 6.0,
            "low": 3.0,
            "high": 9.0,
            "p_value": 0.001,
            "verdict": "better",
            "passed": True,
            "why": "better by 6 points, at least by 3",
            **more,
        }
    )


def guard_config(*names: str, route: Mapping[str, Any] | None = None, **endpoint: Any) -> GuardConfig:
    return GuardConfig(
        endpoints=tuple(
            Endpoint.model_validate({"name": name, "url": "http://h/v1", "model": "m", **endpoint}) for name in names
        ),
        routes={"*": Route.model_validate({"primary": names[0], "retries_max": 0, **(route or {})})},
        breaker=BreakerConfig(jitter=0),
    )


class Files:
    """The routing file, its evidence and the state, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.routing, self.state = folder, folder / "routing.yaml", folder / "state" / "routing.json"

    def write(self, task: Mapping[str, Any], name: str = "t", **more: Any) -> None:
        self.routing.write_text(yaml.safe_dump({"version": 1, **more, "tasks": {name: dict(task)}}))

    def evidence(self, evidence: Evidence, name: str = "evidence.json") -> dict[str, str]:
        """What the routing file says of it."""
        content = evidence.model_dump_json(indent=2).encode()
        (self.folder / name).write_bytes(content)
        return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}

    def kept(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state.read_text())
        return found


class RoutingWorld:
    """Endpoints by their scripts, the first is that of the guard's own route."""

    def __init__(
        self,
        folder: Path,
        *,
        route: Mapping[str, Any] | None = None,
        endpoint: Mapping[str, Any] | None = None,
        scores: Mapping[str, Score] | None = None,
        **scripts: list[RawAnswer],
    ) -> None:
        self.files = Files(folder)
        self.clock = VirtualClock()
        self.client = ScriptedClient(
            self.clock, {**scripts, **{f"{name}/shadow": script for name, script in scripts.items()}}
        )
        self.escalations, self.pairs = MemoryEscalations(), MemoryPairs()
        self.config = guard_config(*scripts, route=route, **(endpoint or {}))
        self.scores = scores

    def open(self, **more: Any) -> RoutedGuard:
        self.guard = RoutedGuard(
            self.config,
            self.files.routing,
            self.files.state,
            self.client,
            self.escalations,
            scores=self.scores,
            pairs=self.pairs,
            prices=PRICES,
            clock=self.clock,
            chance=lambda: 0.5,
            **more,
        )
        return self.guard

    def request(self, **more: Any) -> ModelRequest:
        messages = [{"role": "user", "content": "how many?"}]
        return ModelRequest(**{"task": "t", "messages": messages, "output": ANSWER, "deadline_s": 10.0, **more})

    async def call(self, **more: Any) -> Any:
        return await self.run(self.guard.call(self.request(**more)))

    async def look(self) -> None:
        await self.run(self.guard.look())

    async def run(self, work: Any) -> Any:
        """Until it is done, while the clock goes on."""
        task = asyncio.ensure_future(work)
        await self.clock.run(task)
        return task.result()
