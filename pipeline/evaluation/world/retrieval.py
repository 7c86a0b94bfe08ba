"""Retrieval cases: a query → the bundles that production's search finds for it, best first, with their scores."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.core.clock import Clock, SystemClock
from pipeline.evaluation.values import Case, Step
from pipeline.evaluation.world.files import WorldError, meant
from pipeline.evaluation.world.filled import SuiteFiles
from pipeline.evaluation.world.opened import open_world
from pipeline.lookup.search_request import BUDGET_MS_MAX, BadSearch, SearchRequest, read_request


async def retrieved(suite: SuiteFiles, case: Case, clock: Clock | None = None) -> list[tuple[str, float]]:
    """(key, score) of the hits of a case's `input`: {"context"} beside what the HTTP interface takes of a search, such
    as {"text", "k", "mode", "filter"}; `context` may be left out where one of the suite alone embeds.

    Ties are in the order that production gives them. Raises WorldError for what is no search or a file that can't be
    used; what conditions of the case lead to is raised as the search service raises it.
    """
    context, request = _question(suite, case)
    async with open_world(suite, case, clock or SystemClock(), _untold, BUDGET_MS_MAX) as world:
        try:
            answer = await world.searches.search(context, request)
        except BadSearch as error:
            raise WorldError([f"{case.id}: input: {one}" for one in error.mistakes]) from None
    return [(hit.key, hit.score) for hit in answer.hits]


def _question(suite: SuiteFiles, case: Case) -> tuple[str, SearchRequest]:
    asked: dict[str, Any] = dict(case.input)
    embedded = [name for name, spec in suite.specs.items() if spec.embedding is not None]
    context = asked.pop("context", embedded[0] if len(embedded) == 1 else None)
    if context is None:
        raise WorldError([f"{case.id}: input: add 'context', one of {', '.join(embedded) or 'none, for none embeds'}"])
    if context not in suite.specs:
        raise WorldError([f"{case.id}: input: no context {context!r} in the suite; {meant(str(context), embedded)}"])
    try:
        request = read_request(msgspec.json.encode(asked))
    except BadSearch as error:
        raise WorldError([f"{case.id}: input: {one}" for one in error.mistakes]) from None
    return context, request


def _untold(step: Step) -> None:
    """A retrieval case has no trace."""
