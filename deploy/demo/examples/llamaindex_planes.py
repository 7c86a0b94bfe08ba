"""The demo's planes as nodes of LlamaIndex: python -m deploy.demo.examples.llamaindex_planes URL "wide-body jets"."""

from __future__ import annotations

import sys

from pipeline.client import Client
from pipeline.client.llamaindex import SearchRetriever

READ = "{{ manufacturer }} {{ model }} ({{ tailnum }}), {{ seats }} seats"


def main(url: str, question: str, context: str = "plane") -> None:
    """Prints what was found, with how old it may be."""
    with Client(url) as client:
        retriever = SearchRetriever(client, context, k=5, template=READ)
        for found in retriever.retrieve(question):
            told = found.node.metadata
            print(f"{found.score:.3f} {told['key']} [{told['status']}] {found.node.get_content()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
