"""The past over HTTP: what an answer held by its id, and where the values of a bundle came from."""

from __future__ import annotations

import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core import metrics
from pipeline.lookup.bundle_ids import BadId, read_id
from pipeline.lookup.guarding import AUDITED_KEYS, principal_of
from pipeline.lookup.history import History, Kept, NotKept
from pipeline.lookup.lineage import lineage_of, lineage_of_key
from pipeline.lookup.service import LookupService


class HistoryHandlers:
    """Of GET /v1/contexts/{context}:byId/{id}, …:lineage/{key} and …:lineageById/{id}. 400 for what is no id, 404 for
    what is no longer kept or never was the caller's."""

    def __init__(self, service: LookupService, history: History) -> None:
        self._service, self._history = service, history

    async def by_id(self, request: Request) -> Response:
        started_s = time.perf_counter()
        kept = await self._kept(request)
        metrics.lookup_seconds.labels("history").observe(time.perf_counter() - started_s)
        return _answered(kept.past.to_json())

    async def lineage(self, request: Request) -> Response:
        context, key = request.path_params["context"], request.path_params["key"]
        lineage = await lineage_of_key(self._service, context, key, principal_of(request))
        if lineage is None:
            raise HTTPException(404, f"no bundle of {context} has this key")
        return _answered(lineage.to_json())

    async def lineage_by_id(self, request: Request) -> Response:
        return _answered((await lineage_of(await self._kept(request))).to_json())

    async def _kept(self, request: Request) -> Kept:
        context, text = request.path_params["context"], request.path_params["id"]
        try:
            request.scope[AUDITED_KEYS] = [read_id(text).key]
            return await self._history.find(context, text, principal_of(request))
        except BadId as error:
            raise HTTPException(400, str(error)) from None
        except NotKept as error:
            raise HTTPException(404, str(error)) from None


def _answered(body: bytes) -> Response:
    headers = {"cache-control": "no-store", "x-context-status": "kept"}
    return Response(body, media_type="application/json", headers=headers)
