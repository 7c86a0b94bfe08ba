"""Clients that write to Postgres and at once look up what they wrote, with the position of their write."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from deploy.demo.http_client import HttpConnection
from schemas.position import token_of_lsn

CONTROL_EVERY = 10
"""Each so many writes are looked up without their position first: old values there show what the wait is for."""
BATCH_EVERY = 7
_LSN = "SELECT pg_current_wal_insert_lsn()::text"


@dataclass(frozen=True, slots=True)
class Writing:
    """`update` sets a number ($1) where the key is $2; `path` leads to it in the bundle of the key."""

    dsn: str
    host: str
    port: int
    context: str
    source: str
    update: str
    path: tuple[str, ...]
    budget_ms: float = 10_000
    cluster: str = ""


@dataclass(slots=True)
class Seen:
    """`wrong_fresh` is what must not be: an answer called fresh without the write. `control_old`: lookups without a
    position that still showed the old value."""

    writes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    wrong_fresh: int = 0
    errors: list[str] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    control: int = 0
    control_old: int = 0


async def write_and_read(writing: Writing, keys: Sequence[int], writes: int, in_flight: int) -> Seen:
    """So many writers side by side, each with keys of its own, so that what it must see is what it wrote last."""
    seen = Seen()
    shares = [keys[number::in_flight] for number in range(in_flight)]
    counts = [writes // in_flight + (number < writes % in_flight) for number in range(in_flight)]
    async with asyncio.TaskGroup() as tasks:
        for number, (share, count) in enumerate(zip(shares, counts, strict=True)):
            if count:
                tasks.create_task(_write(writing, share, count, number * 1_000_000, seen))
    return seen


async def _write(writing: Writing, keys: Sequence[int], count: int, first: int, seen: Seen) -> None:
    import asyncpg

    connection = await asyncpg.connect(writing.dsn)
    client = HttpConnection(writing.host, writing.port)
    try:
        for number in range(1, count + 1):
            key, value = keys[number % len(keys)], first + number
            await connection.execute(writing.update, value, key)
            token = token_of_lsn(writing.source, await connection.fetchval(_LSN), writing.cluster)
            seen.writes += 1
            if number % CONTROL_EVERY == 0:
                seen.control += 1
                answer = await _ask(writing, client, key, f"budget_ms={writing.budget_ms:g}", seen)
                seen.control_old += answer is not None and _value(writing, answer) != value
            began_s = time.monotonic()
            asked = f"budget_ms={writing.budget_ms:g}&position={token}"
            answer = await _ask(writing, client, key, asked, seen, as_batch=number % BATCH_EVERY == 0)
            if answer is None:
                continue
            seen.statuses[answer["status"]] += 1
            if answer["status"] == "fresh":
                seen.waits_ms.append((time.monotonic() - began_s) * 1000)
                seen.wrong_fresh += _value(writing, answer) != value
    finally:
        client.close()
        await connection.close()


async def _ask(
    writing: Writing, client: HttpConnection, key: int, asked: str, seen: Seen, as_batch: bool = False
) -> dict[str, Any] | None:
    try:
        if as_batch:
            path = f"/v1/contexts/{writing.context}:batchGet?{asked}"
            status, body = await client.ask(path, json.dumps({"keys": [str(key)]}).encode())
        else:
            status, body = await client.ask(f"/v1/contexts/{writing.context}/{quote(str(key))}?{asked}")
        answer: Any = json.loads(body)
    except (OSError, ValueError) as error:
        seen.errors.append(str(error))
        return None
    if status not in (200, 404) or "status" not in (answer["answers"][0] if as_batch and status == 200 else answer):
        seen.errors.append(f"{status} {body[:200]!r}")
        return None
    found: dict[str, Any] = answer["answers"][0] if as_batch else answer
    return found


def _value(writing: Writing, answer: dict[str, Any]) -> Any:
    value = answer["bundle"]
    for name in writing.path:
        value = value[name] if isinstance(value, dict) and name in value else None
    return value
