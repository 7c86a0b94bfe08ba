"""Metrics pages of other roles: which replica stands, which stage is late, which process no longer answers."""

from __future__ import annotations

import pytest

from pipeline.ops.lag.model import OK, STALL, STOP, UNKNOWN
from pipeline.ops.lag.replicas import Page, Pages, quantile, read_page

URL, KEY = "http://serve-0/metrics", ("flight", "abc")


def serving(applied: int, behind: int = 0) -> Page:
    return read_page(f"""# TYPE ctxpipe_replica_records_total counter
ctxpipe_replica_records_total{{context="flight",space="abc"}} {applied}
ctxpipe_replica_lag_records{{context="flight",space="abc"}} {behind}
""")


def stage(counts: dict[str, int], late: int) -> Page:
    lines = [
        f'ctxpipe_freshness_seconds_bucket{{context="flight",stage="applied",le="{bound}"}} {count}'
        for bound, count in counts.items()
    ]
    lines.append(f'ctxpipe_freshness_late_total{{context="flight",stage="applied"}} {late}')
    lines.append('ctxpipe_freshness_budget_seconds{context="flight",stage="applied"} 0.5')
    return read_page("\n".join(lines))


def test_a_replica_that_stands_is_seen_although_it_says_that_nothing_waits() -> None:
    pages = Pages(stands_s=20)
    (found,) = pages.replicas(0, {URL: serving(100)}, {KEY: 100})
    assert (found.status, found.role, found.context, found.space) == (OK, "serve", "flight", "abc")
    (found,) = pages.replicas(10, {URL: serving(100)}, {KEY: 100})
    assert found.status == OK, "nothing came"
    for at_s, end in ((20, 130), (25, 150)):
        (found,) = pages.replicas(at_s, {URL: serving(100)}, {KEY: end})
        assert found.status == OK and found.lag_records
    (found,) = pages.replicas(40, {URL: serving(100)}, {KEY: 150})
    assert (found.status, found.lag_records) == (STALL, 50) and "none was applied" in found.reason
    (found,) = pages.replicas(50, {URL: serving(120)}, {KEY: 170})
    assert found.status == OK, "it gets on"


def test_a_process_that_stops_answering_is_wrong_one_that_never_did_is_unknown_first() -> None:
    pages = Pages(stands_s=20)
    pages.replicas(0, {URL: serving(1)}, {})
    (found,) = pages.replicas(10, {URL: "timed out"}, {})
    assert (found.status, found.role) == (UNKNOWN, "serve")
    (found,) = pages.replicas(30, {URL: "timed out"}, {})
    assert (found.status, found.context) == (STOP, "flight") and "timed out" in found.reason


def test_stages_of_several_pages_since_the_last_look() -> None:
    pages = Pages(stands_s=20)
    one, two = stage({"0.1": 5, "0.5": 8, "+Inf": 10}, 2), stage({"0.1": 0, "0.5": 10, "+Inf": 10}, 0)
    (found,) = pages.stages({"one": one, "two": two})
    assert (found.updates, found.late, found.budget_s) == (20, 2, 0.5)
    assert found.p50_s is not None and 0.1 < found.p50_s < 0.5 and found.p99_s == 0.5
    (found,) = pages.stages({"one": one, "two": two})
    assert (found.updates, found.p50_s) == (0, None), "nothing since"
    (found,) = pages.stages({"one": stage({"0.1": 1, "0.5": 1, "+Inf": 1}, 0), "two": "away"})
    assert found.updates == 1, "it was started anew"


def test_a_page_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no page of metrics"):
        read_page("<html>hello</html>")
    assert read_page("# TYPE up gauge\nup 1\n").role == ""


@pytest.mark.parametrize(
    ("buckets", "share", "value"),
    [
        ({}, 0.5, None),
        ({0.1: 0, float("inf"): 0}, 0.5, None),
        ({0.1: 10, float("inf"): 10}, 0.5, 0.05),
        ({0.1: 0, 0.2: 10, float("inf"): 10}, 0.5, 0.15),
        ({0.1: 0, 0.2: 0, float("inf"): 10}, 0.5, 0.2),
    ],
)
def test_quantile(buckets: dict[float, float], share: float, value: float | None) -> None:
    assert quantile(buckets, share) == (None if value is None else pytest.approx(value))
