"""The metrics pages of several processes as one, so that who scrapes needs not know which of them run just now."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

PAGE_BYTES_MAX = 16 << 20
THREADS = 8

_LOG = logging.getLogger("ctxpipe.metrics")


def merged(pages: Mapping[str, str]) -> bytes:
    """One page from those of several processes, by name: every series gets a label `process` with the name. A page that
    can't be read is left out, and told."""
    families: dict[str, Metric] = {}
    for process, text in pages.items():
        try:
            read = list(text_string_to_metric_families(text))
        except ValueError as error:
            _LOG.warning("the metrics of %s can't be read: %s", process, error)
            continue
        for family in read:
            kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {**sample.labels, "process": process}
                kept.add_sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar)
    return generate_latest(_Families(families))


def read_pages(ports: Mapping[str, int], timeout_s: float = 1.0) -> dict[str, str]:
    """/metrics of processes of this machine, by their names; those that do not answer in time are left out."""
    with ThreadPoolExecutor(THREADS) as pool:
        read = pool.map(lambda port: _read(port, timeout_s), ports.values())
    return {name: text for name, text in zip(ports, read, strict=True) if text is not None}


class _Families(Collector):
    def __init__(self, families: Mapping[str, Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()


def _read(port: int, timeout_s: float) -> str | None:
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read(PAGE_BYTES_MAX + 1)
        fits = answer.status == 200 and len(body) <= PAGE_BYTES_MAX
        return body.decode() if fits else None
    except (OSError, HTTPException, UnicodeDecodeError):
        return None
    finally:
        connection.close()
