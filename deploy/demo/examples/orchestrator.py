"""An orchestrator: context by key inside a budget → prompt → model → checked decision → action → what it wrote is seen.

Beside a demo that keeps running (`ctxpipe demo --keep`), with the address of its `serve` and its Postgres:

    python -m deploy.demo.examples.orchestrator --url http://127.0.0.1:8080 --dsn postgresql://… 1 2 3

One line of JSON per flight. Without --model-url a stand-in of rules decides, which it says in every line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import click

from deploy.demo.examples.decisions import AskStaff, BadDecision, Decision, EstimateDelay, prompt_of, read_decision
from deploy.demo.examples.models import EndpointModel, Model, ModelFailed, RuleModel
from pipeline.client import AsyncClient, Bundle, ClientError

ATTEMPTS_MAX = 2
CONFIRM_BUDGET_MS = 5_000.0
"""A write has to come all the way through the pipeline."""
_UPDATE = "UPDATE flights SET dep_delay = $1 WHERE flight_id = $2"
_LSN = "SELECT pg_current_wal_insert_lsn()::text"


class Actions(Protocol):
    """What the orchestrator may do."""

    async def estimate_delay(self, flight_id: int, minutes: int) -> str:
        """Gives the position of the write, for lookups that must see it."""


@dataclass
class PostgresActions:
    """Writes estimates into the demo's database, whose changes the pipeline reads as `source`."""

    dsn: str
    source: str
    _connection: Any = field(default=None, init=False)

    async def estimate_delay(self, flight_id: int, minutes: int) -> str:
        import asyncpg

        if self._connection is None:
            self._connection = await asyncpg.connect(self.dsn)
        await self._connection.execute(_UPDATE, minutes, flight_id)
        return AsyncClient.position(self.source, lsn=await self._connection.fetchval(_LSN))

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


@dataclass
class Orchestrator:
    """`budget_ms` and `token_budget` of the context of one decision. Remembers what it wrote last, so that its next
    decision is never made on a bundle from before that."""

    client: AsyncClient
    model: Model
    actions: Actions
    context: str = "flight"
    budget_ms: float = 100.0
    token_budget: int | None = 2_000
    _written: str | None = field(default=None, init=False)

    async def handle(self, key: str) -> dict[str, Any]:
        """One flight, as a line of the log. Raises nothing that a flight or a model could cause."""
        line: dict[str, Any] = {"flight": key, "model": self.model.name}
        try:
            bundle = await self.client.get(
                self.context, key, budget_ms=self.budget_ms, token_budget=self.token_budget, position=self._written
            )
        except ClientError as error:
            return {**line, "decision": "ask_staff", "reason": f"no context: {error}"}
        line |= _seen(bundle)
        why = _undecidable(bundle)
        if why is not None:
            return {**line, "decision": "ask_staff", "reason": why}
        decision, mistakes = await self._decide(bundle)
        line |= {"decision": decision.__struct_config__.tag, "reason": decision.reason}
        if mistakes:
            line["refused"] = mistakes
        return line | await self._act(key, decision)

    async def _decide(self, bundle: Bundle) -> tuple[Decision, list[str]]:
        """And what was wrong with answers before. A model that does not come to its senses decides nothing."""
        mistakes: list[str] = []
        for _ in range(ATTEMPTS_MAX):
            try:
                said = await self.model.complete(prompt_of(bundle, mistakes[-1] if mistakes else None))
                return read_decision(said), mistakes
            except BadDecision as error:
                mistakes.append(str(error))
            except ModelFailed as error:
                return AskStaff(str(error)), mistakes
        return AskStaff("the model's answers could not be taken"), mistakes

    async def _act(self, key: str, decision: Decision) -> dict[str, Any]:
        if not isinstance(decision, EstimateDelay):
            return {}
        self._written = await self.actions.estimate_delay(int(key), decision.minutes)
        try:
            after = await self.client.get(
                self.context, key, budget_ms=CONFIRM_BUDGET_MS, position=self._written, fields="dep_delay"
            )
        except ClientError as error:
            return {"minutes": decision.minutes, "confirmed": False, "after": {"problem": str(error)}}
        # An answer that has not seen the write says so; its old value is then no contradiction.
        confirmed = after.fresh and after.data["dep_delay"] == decision.minutes
        seen = {"status": after.status, "age_ms": after.oldest_ms}
        return {"minutes": decision.minutes, "confirmed": confirmed, "after": seen}


def _seen(bundle: Bundle) -> dict[str, Any]:
    """What leads back to what the model saw: the id where the context keeps its history, and the hash of the bytes."""
    told: dict[str, Any] = {"status": bundle.status, "age_ms": bundle.oldest_ms, "hash": bundle.hash, "id": bundle.id}
    if bundle.left_out:
        told["left_out"] = dict(bundle.left_out)
    if bundle.tokens is not None:
        told["tokens"] = bundle.tokens
    return told


def _undecidable(bundle: Bundle) -> str | None:
    """What each status means to this orchestrator: fresh, stale and partial go to the model, which is told of the age
    and of the gaps; the rest is for people."""
    if bundle.status == "missing":
        return "there is no such flight"
    if bundle.status == "fallback":
        return "there is no context of this flight now, only the default"
    if bundle.not_reached:
        return "what was decided last is not in the context yet"
    return None


async def run(orchestrator: Orchestrator, keys: Sequence[str]) -> list[dict[str, Any]]:
    """One after the other, each line printed as it comes."""
    lines = []
    for key in keys:
        lines.append(await orchestrator.handle(key))
        click.echo(json.dumps(lines[-1], ensure_ascii=False))
    return lines


@click.command()
@click.argument("keys", nargs=-1, required=True, metavar="FLIGHT_ID...")
@click.option("--url", metavar="URL", help="Of a running `ctxpipe serve`.")
@click.option("--redis", "redis_url", metavar="URL", help="Instead: straight from this Redis.")
@click.option("--dsn", required=True, help="Of the demo's Postgres, for what the orchestrator does.")
@click.option("--context", default="flight", show_default=True)
@click.option("--source", default="nyc", show_default=True, help="The name of the Postgres in ctxpipe.yaml.")
@click.option("--budget-ms", type=float, default=100.0, show_default=True)
@click.option("--token-budget", type=int, default=2_000, show_default=True)
@click.option("--model-url", metavar="URL", help="Of an OpenAI-like API, up to /v1; default: a stand-in of rules.")
@click.option("--model-name", default="gpt-4o-mini", show_default=True)
@click.option("--model-key", envvar="OPENAI_API_KEY", help="Better in the environment, as OPENAI_API_KEY.")
def main(
    keys: tuple[str, ...],
    url: str | None,
    redis_url: str | None,
    dsn: str,
    context: str,
    source: str,
    budget_ms: float,
    token_budget: int,
    model_url: str | None,
    model_name: str,
    model_key: str | None,
) -> None:
    """Decide about each flight, in this order."""
    if (url is None) == (redis_url is None):
        raise click.UsageError("give one of --url and --redis")

    async def work() -> None:
        model = RuleModel() if model_url is None else EndpointModel(model_url, model_name, model_key)
        actions = PostgresActions(dsn, source)
        client = AsyncClient.direct(redis_url, contexts=[context]) if url is None else AsyncClient(url)
        try:
            await run(Orchestrator(client, model, actions, context, budget_ms, token_budget), keys)
        finally:
            await client.close()
            await actions.close()
            if isinstance(model, EndpointModel):
                await model.close()

    asyncio.run(work())


if __name__ == "__main__":
    main()
