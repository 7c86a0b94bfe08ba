"""The metrics of all processes that a `ctxpipe worker` runs, as one page at its --health-port."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipeline.commands._embedding_keeper import METRICS_PORTS
from pipeline.commands._embedding_keeper import __name__ as keeper_module
from pipeline.core import metrics
from pipeline.core.metric_pages import merged, read_pages
from pipeline.streams.supervisor import Place

PORT_OPTION = "--metrics-port"
OWN = "supervisor"
"""What the series of the parent itself are labelled with."""


def pages_of(places: Callable[[], Sequence[Place]]) -> Mapping[str, Callable[[], tuple[bytes, str]]]:
    """/metrics for health.serve; `places` are those that run at the time of asking."""

    def page() -> tuple[bytes, str]:
        texts = {OWN: metrics.expose()[0].decode(), **read_pages(metrics_ports(places()))}
        return merged(texts), CONTENT_TYPE_LATEST

    return {"/metrics": page}


def metrics_ports(places: Sequence[Place]) -> dict[str, int]:
    """Name of a process → its port. Who keeps the spaces of a context has one for each process that it may start; where
    free ports were asked for, nobody knows them."""
    found: dict[str, int] = {}
    for place in places:
        words = list(place.command)
        port = int(words[words.index(PORT_OPTION) + 1]) if PORT_OPTION in words else 0
        if not port:
            continue
        if keeper_module in words:
            found |= {f"{place.name}/{i + 1}": port + i for i in range(METRICS_PORTS)}
        else:
            found[place.name] = port
    return found
