"""The positions that a caller must see: from tokens, with what is wrong with them; waiting until they are reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec

from pipeline.core.errors import Retryable
from pipeline.lookup.answer import Answer, NotReached, Status
from pipeline.lookup.applied_watch import AppliedWatch, reason_of
from pipeline.lookup.options import BadOptions
from schemas.errors import DecodeError
from schemas.position import SourcePosition, position_of, token_of

FETCH_SHARE, FETCH_S_MAX = 0.25, 0.02
"""What of a budget is not spent on waiting, so that there is an answer inside it."""
_KINDS = {"lsn": "a log position of Postgres", "time": "a write time of Cassandra or Scylla"}


def read_positions(tokens: Collection[str], context: str, sources: Collection[str]) -> list[SourcePosition]:
    """Raises BadOptions: no tokens of ours, or of sources that the context does not read."""
    positions, mistakes = [], []
    for token in tokens:
        try:
            position = position_of(token)
        except DecodeError as error:
            mistakes.append(f"position: {error}")
            continue
        if position.source not in sources:
            mistakes.append(
                f"position: context {context} reads no source {position.source[:40]!r}; it reads {', '.join(sources)}"
            )
        positions.append(position)
    if mistakes:
        raise BadOptions(mistakes)
    return positions


def foreign_positions(positions: Collection[SourcePosition], watch: AppliedWatch) -> list[str]:
    """What is wrong with positions for the servers that the sources are read from."""
    mistakes = []
    for position in positions:
        kind, clusters = watch.kind(position.source), watch.clusters(position.source)
        if kind is not None and kind != position.kind:
            mistakes.append(
                f"position: {_KINDS[position.kind]} for source {position.source}, which tells {_KINDS[kind]}"
            )
        elif position.cluster and clusters and position.cluster not in clusters:
            mistakes.append(f"position: of another server than the one that source {position.source} is read from")
    return mistakes


def without_positions(answer: Answer, missing: Sequence[NotReached]) -> Answer:
    """Labelled by what its bundle may not hold: never fresh."""
    status: Status = "stale" if answer.status == "fresh" else answer.status
    return msgspec.structs.replace(answer, status=status, not_reached=tuple(missing))


async def wait_for(
    positions: Sequence[SourcePosition], watch: AppliedWatch, refresh: Callable[[], Awaitable[None]], budget_s: float
) -> list[NotReached]:
    """Those that were not reached inside the budget's share, each with the reason. Raises BadOptions for those of
    another server; a store that is away is for the lookup after it to notice."""
    limit_s = budget_s - min(budget_s * FETCH_SHARE, FETCH_S_MAX)
    began_s = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(limit_s):
            await refresh()
    except (TimeoutError, Retryable):
        return [NotReached(one.source, token_of(one), "the store did not answer") for one in positions]
    mistakes = foreign_positions(positions, watch)
    if mistakes:
        raise BadOptions(mistakes)
    await watch.until(positions, limit_s - (asyncio.get_running_loop().time() - began_s))
    missing = watch.missing(positions)
    return [NotReached(one.source, token_of(one), reason_of(one, watch.reached(one.source))) for one in missing]
