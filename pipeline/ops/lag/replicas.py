"""What the metrics pages of the other roles tell that no consumer group shows: stalled replicas, and stages' times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

from pipeline.core.freshness import STAGES
from pipeline.ops.lag.model import OK, STALL, STOP, UNKNOWN, Replica, Stage
from pipeline.ops.lag.names import CANARY, CONNECTOR, EMBEDDER, SERVE, WORKER

PAGE_BYTES_MAX = 16 * 1024 * 1024
_ORDER: tuple[str, ...] = STAGES

Key = tuple[str, str]
"""(context, space) or (context, stage)"""

_ROLES = {
    "ctxpipe_replica_records_total": SERVE,
    "ctxpipe_lookup_answers_total": SERVE,
    "ctxpipe_worker_batches_total": WORKER,
    "ctxpipe_embedding_bundles_total": EMBEDDER,
    "ctxpipe_connector_published_records_total": CONNECTOR,
    "ctxpipe_canary_written_total": CANARY,
}
"""A series that only processes of a role have, once they have done something."""
_ROLE_OF_STAGE = {
    "captured": CONNECTOR, "in_kafka": CONNECTOR, "applied": WORKER, "embedded": EMBEDDER, "in_faiss": SERVE,
}  # fmt: skip


@dataclass(slots=True)
class Page:
    """What counts of one page."""

    role: str = ""
    replica_records: dict[Key, float] = field(default_factory=dict)
    replica_behind: dict[Key, float] = field(default_factory=dict)
    buckets: dict[Key, dict[float, float]] = field(default_factory=dict)
    late: dict[Key, float] = field(default_factory=dict)
    budgets: dict[Key, float] = field(default_factory=dict)


def read_page(text: str) -> Page:
    """Raises ValueError for what is no page of metrics."""
    page = Page()
    wanted = ("ctxpipe_replica_", "ctxpipe_freshness_", *_ROLES)
    lines = [line for line in text.splitlines() if line.startswith(wanted)]
    if not lines and "# TYPE" not in text:
        raise ValueError("it is no page of metrics")
    for family in text_string_to_metric_families("\n".join([*lines, ""])):
        for sample in family.samples:
            role = _ROLES.get(sample.name)
            labels = sample.labels
            if sample.name == "ctxpipe_freshness_budget_seconds":
                role = _ROLE_OF_STAGE.get(labels.get("stage", ""))
            if role and not page.role:
                page.role = role
            space, stage = (labels.get("context", ""), labels.get("space", "")), (
                labels.get("context", ""), labels.get("stage", ""))  # fmt: skip
            if sample.name == "ctxpipe_replica_records_total":
                page.replica_records[space] = sample.value
            elif sample.name == "ctxpipe_replica_lag_records":
                page.replica_behind[space] = sample.value
            elif sample.name == "ctxpipe_freshness_seconds_bucket":
                page.buckets.setdefault(stage, {})[float(labels["le"])] = sample.value
            elif sample.name == "ctxpipe_freshness_late_total":
                page.late[stage] = sample.value
            elif sample.name == "ctxpipe_freshness_budget_seconds":
                page.budgets[stage] = sample.value
    return page


class Pages:
    """Remembers the last page of every address, and since when a replica stands."""

    def __init__(self, stands_s: float) -> None:
        self._stands_s = stands_s
        self._last: dict[str, Page] = {}
        self._moved: dict[tuple[str, Key], tuple[float, float, int]] = {}
        """(records applied, since when, end of the topics then)"""
        self._stage_pages: dict[str, Page] = {}
        self._came: dict[str, float] = {}

    def replicas(self, now_s: float, pages: Mapping[str, Page | str], ends: Mapping[Key, int]) -> list[Replica]:
        """`pages` by address, or why one did not come; `ends`: records that the topics of a space have had so far."""
        found: list[Replica] = []
        for url, page in pages.items():
            if isinstance(page, str):
                found.append(self._silent(now_s, url, page))
                continue
            self._last[url], self._came[url] = page, now_s
            if page.replica_records:
                found += [self._replica(now_s, url, page, key, ends.get(key)) for key in sorted(page.replica_records)]
            else:
                found.append(Replica(url, OK, role=page.role))
        return found

    def _silent(self, now_s: float, url: str, problem: str) -> Replica:
        """One that answered before and no longer does has ended, or stands still as a whole."""
        silent_s = now_s - self._came.setdefault(url, now_s)
        last = self._last.get(url, Page())
        key = next(iter(sorted(last.replica_records)), ("", ""))
        status = STOP if silent_s >= self._stands_s else UNKNOWN
        return Replica(url, status, f"its page does not come: {problem}", last.role, *key, unmoved_s=silent_s)

    def _replica(self, now_s: float, url: str, page: Page, key: Key, end: int | None) -> Replica:
        """A replica that stands says itself that nothing waits: what the topics have got since then tells."""
        records = page.replica_records[key]
        before, since_s, end_then = self._moved.get((url, key), (-1.0, now_s, end or 0))
        if records != before or end is None or end <= end_then:
            before, since_s, end_then = records, now_s, end if end is not None else end_then
        self._moved[url, key] = (before, since_s, end_then)
        waiting = max(0, (end or 0) - end_then)
        told = int(page.replica_behind.get(key, 0.0))
        stands_s = now_s - since_s
        if waiting and stands_s >= self._stands_s:
            reason = f"{waiting} records came for it and none was applied for {stands_s:.0f} s"
            return Replica(url, STALL, reason, SERVE, *key, max(told, waiting), stands_s)
        return Replica(url, OK, "", SERVE, *key, max(told, waiting))

    def last(self) -> list[Page]:
        """The last page of every address that gave one."""
        return list(self._last.values())

    def stages(self, pages: Mapping[str, Page | str]) -> list[Stage]:
        """Of what happened since the last call, over all pages; a page's first time counts from its beginning."""
        buckets: dict[Key, dict[float, float]] = {}
        late: dict[Key, float] = {}
        budgets: dict[Key, float] = {}
        for url, page in pages.items():
            if isinstance(page, str):
                continue
            before = self._stage_pages.get(url, Page())
            for key, counts in page.buckets.items():
                total = buckets.setdefault(key, {})
                for bound, count in _since(counts, before.buckets.get(key, {})).items():
                    total[bound] = total.get(bound, 0.0) + count
            for key, count in page.late.items():
                late[key] = late.get(key, 0.0) + _rise(count, before.late.get(key, 0.0))
            budgets |= page.budgets
            self._stage_pages[url] = page
        found = [
            Stage(*key, int(counts.get(float("inf"), 0.0)), quantile(counts, 0.5), quantile(counts, 0.99),
                  budgets.get(key), int(late.get(key, 0.0)))
            for key, counts in buckets.items()
        ]  # fmt: skip
        return sorted(found, key=lambda stage: (stage.context, *_place(stage.stage)))


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """As Prometheus' histogram_quantile; the last finite bound for what lies above it, None without observations."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank = share * total
    for lower, upper in pairwise([0.0, *bounds]):
        below = buckets.get(lower, 0.0)
        if buckets[upper] >= rank:
            if upper == float("inf"):
                return lower
            inside = buckets[upper] - below
            return lower + (upper - lower) * ((rank - below) / inside if inside > 0 else 1.0)
    return bounds[-1]


def _since(counts: Mapping[float, float], before: Mapping[float, float]) -> dict[float, float]:
    """A process that began anew counts from zero."""
    anew = any(count < before.get(bound, 0.0) for bound, count in counts.items())
    return {bound: count if anew else count - before.get(bound, 0.0) for bound, count in counts.items()}


def _rise(count: float, before: float) -> float:
    return count if count < before else count - before


def _place(stage: str) -> tuple[int, str]:
    return _ORDER.index(stage) if stage in _ORDER else len(_ORDER), stage


def replica_spaces(pages: Iterable[Page | str]) -> set[Key]:
    """(context, space) of everything that the pages' replicas hold."""
    return {key for page in pages if not isinstance(page, str) for key in page.replica_records}
