"""What stands still is named: by `ctxpipe lag --explain`, by its alert in a real Prometheus, and by the canary at the
lookup, each within seconds. Every role is a real process; faults are made by signals and by a proxy that hangs."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.pages.__main__ import GRAFANA
from pipeline.core import metrics
from tests.support.dashboards import expressions, filled
from tests.support.eventually import eventually_sync
from tests.support.prometheus import alerts, lint, records, series_of
from tests.support.servers import LocalRoot, fresh_database
from tests.support.watched_pipeline import NAMED_S_MAX, Named, WatchedPipeline

pytestmark = pytest.mark.servers
_LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, local_root: LocalRoot, postgres_server: str
) -> Iterator[WatchedPipeline]:
    with fresh_database(postgres_server, "named_faults") as dsn:
        made = WatchedPipeline(tmp_path_factory.mktemp("watched"), local_root, dsn)
        try:
            made.start()
            yield made
        finally:
            made.close()


def test_every_panel_of_the_dashboards_can_be_asked(watched: WatchedPipeline) -> None:
    """Matching of labels is tried only where there are series; most panels have some here, where all roles run."""
    boards = [json.loads(file.read_text()) for file in sorted(GRAFANA.glob("*.json"))]
    asked = [(board["title"], *one) for board in boards for one in expressions(board) if "label_values" not in one[1]]
    empty = [(title, panel, text) for title, panel, text in asked if not watched.asked(filled(text))]
    _LOG.warning("%d of %d queries give nothing: %s", len(empty), len(asked), sorted({one[1] for one in empty}))
    assert len(empty) < len(asked) / 2, empty


def test_prometheus_evaluates_every_rule_and_the_pages_of_all_roles_are_sound(watched: WatchedPipeline) -> None:
    rules = eventually_sync(
        watched.rules, lambda found: all(rule["health"] != "unknown" for rule in found), timeout_s=60, what="evaluated"
    )
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == len(alerts()) + len(records())
    scraped = {one.labels["__name__"] for one in watched.asked('{__name__=~"ctxpipe_.+"}')}
    assert scraped <= {name for definition in metrics.DEFINITIONS for name in series_of(definition)}
    roles = {one.labels["role"] for one in watched.asked("up == 1")}
    assert roles == {"connect", "worker", "embedder", "serve", "collector", "canary"}
    assert {name: told for name in watched.ports if (told := lint(watched.page(name)))} == {}


def judged(watched: WatchedPipeline, named: Named, alert: str, record: Any) -> str:
    """All three named it in time; gives what a person reads."""
    record("seconds", named.seconds)
    _LOG.warning("%s named after %s s", alert, named.seconds)
    assert max(named.seconds.values()) <= NAMED_S_MAX, named.seconds
    eventually_sync(watched.alarms, lambda alarms: alert in alarms, timeout_s=30, what=f"{alert} is pending")
    code, lines = watched.explained()
    assert code == 1, lines
    told = " ".join(" ".join(lines).split())
    assert named.finding["runbook"] in told
    return told


def test_a_frozen_partition(watched: WatchedPipeline, record_property: Any) -> None:
    """One of two workers hangs: its partition stands, the other gets on."""
    frozen = watched.workers()[0]
    frozen.send_signal(signal.SIGSTOP)
    try:
        named = watched.until_named(
            time.monotonic(),
            lambda one: one["runbook"] == "A group stands still" and watched.context in one["where"],
            "CtxpipePartitionFrozen",
            lambda labels: labels["topic"].startswith(f"{watched.source}."),
            "lookups at",
        )
        told = judged(watched, named, "CtxpipePartitionFrozen", record_property)
    finally:
        frozen.send_signal(signal.SIGCONT)
    partition = named.alert.labels["partition"]
    assert f"{named.alert.labels['topic']}/{partition} at offset" in told
    assert "stands still on" in told
    assert f"partition {partition}" in named.canary
    watched.until_well()


def test_a_dead_connector(watched: WatchedPipeline, record_property: Any) -> None:
    watched.kill(watched.connector)
    named = watched.until_named(
        time.monotonic(),
        lambda one: one["runbook"] == "A connector has stopped" and watched.source in one["where"],
        "CtxpipeConnectorStopped",
        lambda labels: labels["source"] == watched.source,
        "lookups at",
    )
    assert watched.source in judged(watched, named, "CtxpipeConnectorStopped", record_property)
    watched.start_connector()
    watched.until_well()


def test_a_stalled_serving_replica(watched: WatchedPipeline, record_property: Any) -> None:
    """It answers lookups, and says itself that nothing waits; but nothing comes to it any more."""
    watched.proxy.hang()
    try:
        named = watched.until_named(
            time.monotonic(),
            lambda one: one["runbook"] == "A serving replica stands still",
            "CtxpipeReplicaStalled",
            lambda labels: labels["instance"].endswith(f":{watched.ports['b']}"),
            f"searches at http://127.0.0.1:{watched.ports['b']}",
        )
        told = judged(watched, named, "CtxpipeReplicaStalled", record_property)
    finally:
        watched.proxy.flow()
    assert f"the serving replica at http://127.0.0.1:{watched.ports['b']}" in told
    assert f"the serving replica at http://127.0.0.1:{watched.ports['a']}" not in told
    watched.until_well()


def test_a_dead_embedder(watched: WatchedPipeline, record_property: Any) -> None:
    """The last one: who comes back after kill -9 waits until its group has given up the one before."""
    watched.kill(watched.embedder)
    named = watched.until_named(
        time.monotonic(),
        lambda one: one["runbook"] == "The embedder has stopped" and watched.context in one["where"],
        "CtxpipeEmbedderStopped",
        lambda labels: ".space." in labels["group"] and watched.context in labels["group"],
        "searches at",
    )
    assert "the embedding of context" in judged(watched, named, "CtxpipeEmbedderStopped", record_property)
