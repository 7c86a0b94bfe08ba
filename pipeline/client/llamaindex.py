"""Retrievers for LlamaIndex: nodes are bundles, with their age and status in the metadata. Needs ctxpipe[llamaindex].

SearchRetriever(Client("http://host:port"), "plane", k=5).retrieve("wide-body jets to Hawaii")
KeyRetriever(Client("http://host:port"), "flight").retrieve("4711")
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pipeline.client.asynchronous import AsyncClient
from pipeline.client.blocking import Client
from pipeline.client.documents import Page, found_pages, key_pages, keys_of
from pipeline.core.errors import EnvironmentProblem

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise EnvironmentProblem("this needs one more package: pip install 'ctxpipe[llamaindex]'") from error


class SearchRetriever(BaseRetriever):  # type: ignore[misc]
    """The `k` bundles of a context nearest to the query, best first. See AsyncClient.search; raises ClientError."""

    def __init__(
        self,
        client: Client,
        context: str,
        *,
        async_client: AsyncClient | None = None,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        mode: str = "auto",
        budget_ms: float | None = None,
        template: str | None = None,
    ) -> None:
        """`template` is a Jinja template over a bundle; without one, a node's text is the bundle's JSON. Without
        `async_client`, coroutines use `client` in a thread."""
        super().__init__()
        self._client, self._async_client, self._context, self._template = client, async_client, context, template
        self._options: dict[str, Any] = {
            "k": k, "filter": filter, "min_score": min_score, "mode": mode, "budget_ms": budget_ms
        }  # fmt: skip

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._client.search(self._context, query_bundle.query_str, **self._options)
        return [_node(page) for page in found_pages(found, self._template)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self._async_client is None:
            return await asyncio.to_thread(self._retrieve, query_bundle)
        found = await self._async_client.search(self._context, query_bundle.query_str, **self._options)
        return [_node(page) for page in found_pages(found, self._template)]


class KeyRetriever(BaseRetriever):  # type: ignore[misc]
    """The bundles of the keys in the query, one per line, in order, without those that do not exist."""

    def __init__(
        self,
        client: Client,
        context: str,
        *,
        async_client: AsyncClient | None = None,
        max_age_ms: float | None = None,
        token_budget: int | None = None,
        budget_ms: float | None = None,
        template: str | None = None,
    ) -> None:
        """See SearchRetriever."""
        super().__init__()
        self._client, self._async_client, self._context, self._template = client, async_client, context, template
        self._options: dict[str, Any] = {
            "max_age_ms": max_age_ms, "token_budget": token_budget, "budget_ms": budget_ms
        }  # fmt: skip

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        bundles = self._client.get_many(self._context, keys_of(query_bundle.query_str), **self._options)
        return [_node(page) for page in key_pages(bundles, self._template)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self._async_client is None:
            return await asyncio.to_thread(self._retrieve, query_bundle)
        bundles = await self._async_client.get_many(self._context, keys_of(query_bundle.query_str), **self._options)
        return [_node(page) for page in key_pages(bundles, self._template)]


def _node(page: Page) -> NodeWithScore:
    """The labels are for programs: neither an embedding nor a model reads them unless it is asked to."""
    names = list(page.metadata)
    node = TextNode(
        id_=f"{page.metadata['context']}/{page.metadata['key']}",
        text=page.text,
        metadata=page.metadata,
        excluded_embed_metadata_keys=names,
        excluded_llm_metadata_keys=names,
    )
    return NodeWithScore(node=node, score=page.score)
