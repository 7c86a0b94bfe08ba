"""A small suite on disk for the tests of evaluation worlds: two contexts of orders, their log, their fixed bundles."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluation.values import Case
from schemas.context import ContextSpec

ORDER: dict[str, Any] = {
    "context": "order",
    "version": 3,
    "root": "order",
    "entities": {
        "order": {"source": "shop", "table": "public.orders", "key": ["id"]},
        "customer": {"source": "crm", "table": "public.customers", "key": ["id"]},
        "item": {"source": "shop", "table": "public.items", "key": ["order_id", "line"]},
    },
    "fields": ["id", "note", "owner"],
    "sections": {
        "customer": {"entity": "customer", "on": {"id": "customer_id"}, "compose": "link", "fields": ["id", "name"]},
        "sums": {
            "entity": "item",
            "kind": "many",
            "on": {"order_id": "id"},
            "compose": "copy",
            "aggregates": {"lines": "count", "pieces": {"sum": "pieces"}},
        },
    },
    "serving": {"budget_ms": 50, "max_age_ms": 60_000},
}
PRODUCT: dict[str, Any] = {
    "context": "product",
    "version": 1,
    "root": "product",
    "entities": {"product": {"source": "shop", "table": "public.products", "key": ["id"]}},
    "fields": ["id", "title", "year", "owner"],
    "tenant": "owner",
    "embedding": {
        "engine": "hash",
        "dimension": 64,
        "template": "{{ title }}{% if year %} of {{ year }}{% endif %}",
        "filters": ["year", "owner"],
    },
    "serving": {"budget_ms": 50, "max_age_ms": 60_000},
}


@dataclass
class SmallSuite:
    """See SuiteFiles."""

    folder: Path
    specs: dict[str, ContextSpec] = field(default_factory=dict)

    def file(self, relative: str) -> Path:
        return self.folder / relative

    def write(self, name: str, lines: list[Any]) -> str:
        """Lines that are texts are written as they are."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return name


def small_suite(folder: Path, **changed: Any) -> SmallSuite:
    """`changed`: parts of the context `order`."""
    specs = [ContextSpec.model_validate(one) for one in ({**ORDER, **changed}, PRODUCT)]
    return SmallSuite(folder, {spec.context: spec for spec in specs})


def case(**parts: Any) -> Case:
    """Of kind trace unless `parts` say otherwise."""
    made = {"id": "c1", "kind": "trace", "expect": [{"check": "raised_nothing"}], **parts}
    return Case.model_validate(made)


class Log:
    """Lines of a log as a connector writes it: partition 0 of every table, or the one given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._offsets: dict[tuple[str, int], int] = {}
        self._lsn = 100

    def add(
        self, source: str, table: str, key: dict[str, Any], row: dict[str, Any] | None, partition: int = 0, **more: Any
    ) -> None:
        """A row as it is from now on; None deletes it."""
        self._lsn += 1
        told: dict[str, Any] = {"version": "ctxpipe-test", "connector": "postgresql", "name": source, "db": "d"}
        told["snapshot"] = "false"
        told |= {"schema": "public", "table": table, "txId": 1, "lsn": self._lsn, "ts_ms": 1000, "ts_us": 1_000_000}
        told["sequence"] = f'["{self._lsn}","{self._lsn}"]'
        value = {"before": None, "after": row, "source": told, "op": "d" if row is None else "u", "ts_ms": 1000}
        self.raw(f"{source}.public.{table}", key, partition, value=value, **more)

    def raw(self, topic: str, key: Any, partition: int = 0, **parts: Any) -> None:
        place = (topic, partition)
        offset = self._offsets.get(place, 0)
        self._offsets[place] = offset + 1
        line = {"topic": topic, "partition": partition, "offset": offset, "timestamp_ms": 1000, "key": key}
        self.lines.append({**line, **parts})

    def order(self, number: int, customer: int | None, note: str = "", owner: str = "acme") -> None:
        row = {"id": number, "customer_id": customer, "note": note, "owner": owner}
        self.add("shop", "orders", {"id": number}, row, number % 2)

    def customer(self, number: int, name: str) -> None:
        self.add("crm", "customers", {"id": number}, {"id": number, "name": name})

    def item(self, order: int, line: int, pieces: int) -> None:
        key = {"order_id": order, "line": line}
        self.add("shop", "items", key, {**key, "pieces": pieces}, line % 2)


def order_log() -> Log:
    """Orders 1 to 4, of which 4 is deleted; customers 7 and 8, the first renamed; items of 1 and 2."""
    log = Log()
    for number in (1, 2, 3, 4):
        log.order(number, 7 if number < 3 else 8, f"note {number}")
    log.customer(7, "Ann")
    for line in (1, 2, 3):
        log.item(1, line, 10 * line)
    log.item(2, 1, 5)
    log.customer(8, "Bob")
    log.customer(7, "Anne")
    log.add("shop", "orders", {"id": 4}, None, 0)
    log.order(2, 8, "moved")
    log.add("shop", "items", {"order_id": 1, "line": 2}, None, 0)
    return log
