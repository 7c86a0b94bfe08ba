"""The demo's planes as documents of LangChain: python -m deploy.demo.examples.langchain_planes URL "wide-body jets"."""

from __future__ import annotations

import sys

from pipeline.client import Client
from pipeline.client.langchain import SearchRetriever

READ = "{{ manufacturer }} {{ model }} ({{ tailnum }}), {{ seats }} seats"


def main(url: str, question: str, context: str = "plane") -> None:
    """Prints what was found, with how old it may be."""
    with Client(url) as client:
        retriever = SearchRetriever(client=client, context=context, k=5, template=READ)
        for document in retriever.invoke(question):
            told = document.metadata
            print(f"{told['score']:.3f} {told['key']} [{told['status']}] {document.page_content}")


if __name__ == "__main__":
    main(*sys.argv[1:])
