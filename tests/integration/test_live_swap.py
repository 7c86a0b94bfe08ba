"""A model is swapped by one file under 200 concurrent callers, over real HTTP: proved by shadow traffic, refused
without proof, taken back by itself when it goes bad; and nobody who called noticed more than another answer.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core import metrics
from pipeline.guard.config import Endpoint, GuardConfig, Route
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.faults import FaultServer
from pipeline.guard.http_client import HttpClient
from pipeline.guard.output import of_schema
from pipeline.guard.routing.pairs import PairFile
from pipeline.guard.routing.routed_guard import RoutedGuard
from pipeline.guard.routing.state import Standing
from pipeline.guard.values import ModelRequest, Result
from tests.support.cli import Done, ctxpipe
from tests.support.eventually import eventually

CALLERS, TENANTS, PAIRS = 200, 40, 300
DEADLINE_S = 30.0
RIGHT, WRONG, MALFORMED = '{"answer": 42}', '{"answer": 41}', "I'd rather not say."
OUTPUT = of_schema(
    "answer",
    {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    },
)
FILES = ("--file", "routing.yaml", "--guard", "guard.yaml")
LIMITS = {"malformed_share_max": 0.02, "failure_share_max": 0.05, "calls_min": 50, "window_calls": 500}


def right(request: ModelRequest, result: Result) -> dict[str, float]:
    """The task's own measure."""
    return {"score": float(result.answered and result.output["answer"] == request.data["truth"])}


@dataclass
class Service:
    """An application with its callers: what they got is counted, what they should never get is kept."""

    folder: Path
    config: GuardConfig
    guard: RoutedGuard
    escalations: MemoryEscalations
    got: Counter[tuple[str, Any]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    calls: int = 0
    running: bool = True

    async def caller(self, number: int) -> None:
        while self.running:
            self.calls += 1
            request = ModelRequest(
                task="rebook",
                messages=[{"role": "user", "content": f"question {self.calls}"}],
                output=OUTPUT,
                deadline_s=DEADLINE_S,
                tenant=f"tenant-{number % TENANTS}",
                request_id=f"request-{self.calls}",
                data={"truth": 42},
            )
            try:
                result = await self.guard.call(request)
            except Exception as error:  # noqa: BLE001 - there must be none; the test says which there was
                self.wrong.append(repr(error))
                return
            if not result.answered or result.output.keys() != {"answer"} or result.took_s > DEADLINE_S:
                self.wrong.append(f"{result.rung} {result.reason} {result.output}")
            self.got[result.endpoint, result.output["answer"] if result.answered else None] += 1

    async def answered_by(self, endpoint: str, calls: int = 2 * CALLERS) -> None:
        """That many more calls are answered by it, and then no other one is."""
        before = self._of(endpoint)
        await eventually(lambda: self._of(endpoint) >= before + calls, timeout_s=60, what=f"answers by {endpoint}")

    def _of(self, endpoint: str) -> int:
        return sum(count for (name, _), count in self.got.items() if name == endpoint)

    def write(self, **task: Any) -> None:
        text = yaml.safe_dump({"version": 1, "tasks": {"rebook": {"others": ["old"], "limits": LIMITS, **task}}})
        (self.folder / "routing.yaml").write_text(text)

    async def command(self, *words: str) -> Done:
        return await asyncio.to_thread(ctxpipe, *words, folder=self.folder)

    async def compared(self, candidate: str) -> tuple[int, dict[str, Any]]:
        """(exit code, what `eval compare` says) of the pairs that shadow traffic left of this candidate."""
        before = copied()
        await eventually(lambda: copied() >= before + PAIRS, timeout_s=60, what=f"pairs of {candidate}")
        done = await self.command(
            "eval", "compare", "--pairs", "pairs.jsonl", "--evidence", f"{candidate}.json", "--json"
        )
        return done.code, json.loads(done.out.splitlines()[-1])


@dataclass
class Models:
    """Three endpoints of three servers, so that each says what it likes."""

    old: FaultServer
    same: FaultServer
    new: FaultServer

    def config(self) -> GuardConfig:
        servers = {"old": self.old, "same": self.same, "new": self.new}
        return GuardConfig(
            endpoints=tuple(
                Endpoint(name=name, url=server.url("slow"), model=f"model-{name}", timeout_s=10)
                for name, server in servers.items()
            ),
            routes={"rebook": Route(primary="old", retries_max=1, retry_delay_s=0.01)},
        )


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    async with AsyncExitStack() as stack:
        yield Models(
            *[await stack.enter_async_context(FaultServer(content, delay_s=0.02)) for content in (WRONG, WRONG, RIGHT)]
        )


def opened(folder: Path, config: GuardConfig, client: HttpClient, escalations: MemoryEscalations) -> RoutedGuard:
    return RoutedGuard(
        config,
        folder / "routing.yaml",
        folder / "data" / "routing-state.json",
        client,
        escalations,
        scores={"rebook": right},
        pairs=PairFile(folder / "pairs.jsonl"),
        look_every_s=0.05,
    )


def copied() -> float:
    labels = {"task": "rebook", "outcome": "paired"}
    return metrics.REGISTRY.get_sample_value("ctxpipe_guard_shadow_total", labels) or 0.0


def refused(reason: str) -> float:
    labels = {"reason": reason}
    return metrics.REGISTRY.get_sample_value("ctxpipe_guard_routing_refused_total", labels) or 0.0


async def refuses(service: Service, reason: str, **task: Any) -> None:
    """The file is told to be wrong, and the old model goes on answering."""
    before = refused(reason)
    service.write(**task)
    await eventually(lambda: refused(reason) == before + 1, timeout_s=20, what=f"a refusal for {reason}")
    await service.answered_by("old")


async def not_better_is_not_promoted(service: Service) -> None:
    service.write(active="old", others=[], candidate={"endpoint": "same", "share": 0.1})
    code, told = await service.compared("same")
    assert code in (1, 2), told
    done = await service.command(
        "route",
        "promote",
        "rebook",
        "same",
        "--evidence",
        "same.json",
        "--file",
        "routing.yaml",
        "--guard",
        "guard.yaml",
    )
    assert done.code == 1, done.err
    assert "rebook: same is not promoted: the evidence says" in done.err
    await refuses(
        service, "not_better", active="same", evidence={"file": "same.json", "sha256": told["evidence"]["sha256"]}
    )


async def better_is_promoted(service: Service) -> None:
    service.write(active="old", others=[], candidate={"endpoint": "new", "share": 0.1})
    code, told = await service.compared("new")
    assert (code, told["verdict"]) == (0, "better"), told
    swaps = service.guard.generation
    done = await service.command("route", "promote", "rebook", "new", "--evidence", "new.json", *FILES)
    assert done.code == 0, done.err
    await service.answered_by("new")
    assert service.guard.generation == swaps + 1


async def goes_bad_and_is_taken_back(service: Service, models: Models) -> None:
    written = (service.folder / "routing.yaml").read_text()
    text = written.replace("others: []", "others: [old]")
    assert text != written
    (service.folder / "routing.yaml").write_text(text)

    def in_force() -> Standing:
        return service.guard.in_force["rebook"]

    await eventually(lambda: in_force().route.others == ("old",), timeout_s=20, what="the new ladder")
    await service.answered_by("new")
    models.new.content = MALFORMED
    await eventually(lambda: in_force().identity.endpoint == "old", timeout_s=60, what="the rollback")
    before = service._of("new")
    await service.answered_by("old")
    assert service._of("new") == before, "somebody was still answered by it"
    await eventually(lambda: len(service.escalations.records) == 1, timeout_s=20, what="the question for people")
    assert service.escalations.records[0].data["active_again"] == "old"


async def test_a_model_is_swapped_by_one_file_under_200_callers(tmp_path: Path, models: Models) -> None:
    config, escalations = models.config(), MemoryEscalations()
    guard_file = {
        "endpoints": [one.model_dump(mode="json", exclude_none=True) for one in config.endpoints],
        "routes": {"rebook": {"primary": "old"}},
    }
    (tmp_path / "guard.yaml").write_text(yaml.safe_dump(guard_file))
    (tmp_path / "routing.yaml").write_text("version: 1\ntasks: {rebook: {active: old}}\n")
    async with HttpClient() as client, opened(tmp_path, config, client, escalations) as guard:
        service = Service(tmp_path, config, guard, escalations)
        callers = [asyncio.create_task(service.caller(number)) for number in range(CALLERS)]
        await service.answered_by("old")
        await refuses(service, "no_evidence", active="new")
        await refuses(service, "broken_file", active="nobody")
        await not_better_is_not_promoted(service)
        await better_is_promoted(service)
        await goes_bad_and_is_taken_back(service, models)
        service.running = False
        await asyncio.gather(*callers)
        assert service.wrong == []
        answers = dict(service.got)
        assert set(answers) == {("old", 41), ("new", 42)}
        print(f"\n{service.calls} calls by {CALLERS} callers, 0 errors: {answers}")
    async with HttpClient() as client, opened(tmp_path, config, client, escalations) as again:
        assert again.in_force["rebook"].identity.endpoint == "old"
