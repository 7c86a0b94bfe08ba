"""Retrievers for LangChain: documents are bundles, with their age and status in the metadata. Needs ctxpipe[langchain].

SearchRetriever(client=Client("http://host:port"), context="plane", k=5).invoke("wide-body jets to Hawaii")
KeyRetriever(client=Client("http://host:port"), context="flight").invoke("4711")
"""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.client.asynchronous import AsyncClient
from pipeline.client.blocking import Client
from pipeline.client.documents import Page, found_pages, key_pages, keys_of
from pipeline.core.errors import EnvironmentProblem

try:
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict
except ImportError as error:
    raise EnvironmentProblem("this needs one more package: pip install 'ctxpipe[langchain]'") from error


class _Retriever(BaseRetriever):  # type: ignore[misc]
    """`template` is a Jinja template over a bundle; without one, a document's text is the bundle's JSON. Without
    `async_client`, coroutines use `client` in a thread."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    client: Client
    async_client: AsyncClient | None = None
    context: str
    template: str | None = None
    budget_ms: float | None = None


class SearchRetriever(_Retriever):
    """The `k` bundles of a context nearest to the query, best first. See AsyncClient.search; raises ClientError."""

    k: int = 4
    filter: dict[str, Any] | None = None
    min_score: float | None = None
    mode: str = "auto"

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        found = self.client.search(self.context, query, **self._options())
        return [_document(page) for page in found_pages(found, self.template)]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        if self.async_client is None:
            return await asyncio.to_thread(self._get_relevant_documents, query, run_manager=run_manager)
        found = await self.async_client.search(self.context, query, **self._options())
        return [_document(page) for page in found_pages(found, self.template)]

    def _options(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "filter": self.filter,
            "min_score": self.min_score,
            "mode": self.mode,
            "budget_ms": self.budget_ms,
        }


class KeyRetriever(_Retriever):
    """The bundles of the keys in the query, one per line, in order, without those that do not exist."""

    max_age_ms: float | None = None
    token_budget: int | None = None

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        bundles = self.client.get_many(self.context, keys_of(query), **self._options())
        return [_document(page) for page in key_pages(bundles, self.template)]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        if self.async_client is None:
            return await asyncio.to_thread(self._get_relevant_documents, query, run_manager=run_manager)
        bundles = await self.async_client.get_many(self.context, keys_of(query), **self._options())
        return [_document(page) for page in key_pages(bundles, self.template)]

    def _options(self) -> dict[str, Any]:
        return {"budget_ms": self.budget_ms, "max_age_ms": self.max_age_ms, "token_budget": self.token_budget}


def _document(page: Page) -> Document:
    place = f"{page.metadata['context']}/{page.metadata['key']}"
    return Document(page_content=page.text, metadata=page.metadata, id=place)
