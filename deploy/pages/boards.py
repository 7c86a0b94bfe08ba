"""The dashboards for who looks at the whole: overview, pipeline and lag."""

from __future__ import annotations

from deploy.pages.expressions import Asking, legend, one_of
from deploy.pages.panels import Choice, Colour, Dashboard, Panel, Query, Row

CONTEXT = Choice("context", "ctxpipe_freshness_budget_seconds")
GROUP = Choice("group", "ctxpipe_group_members")
UP: dict[str, tuple[str, Colour]] = {"0": ("away", "red"), "1": ("up", "green")}
LOW_IS_BAD: tuple[tuple[float | None, Colour], ...] = ((None, "red"), (1, "green"))
BURN: tuple[tuple[float | None, Colour], ...] = ((None, "green"), (1, "yellow"), (6, "orange"), (14.4, "red"))
SHARE_OF_TEN: tuple[tuple[float | None, Colour], ...] = ((None, "green"), (0.1, "red"))


def overview() -> Dashboard:
    ask = Asking()
    rows = [
        Row("What callers get", _callers(ask)),
        Row("Seen from outside", _outside(ask)),
        Row("The way there", _way(ask)),
    ]
    told = "Is context late, and where? What callers get, what the canary sees, and the way from the source."
    return Dashboard("ctxpipe-overview", "ctxpipe overview", told, rows)


def _callers(ask: Asking) -> list[Panel]:
    burn = "{} / on (slo) group_left () (1 - ctxpipe:slo_objective:ratio)"
    lookups = "ctxpipe_lookup_requests_total"
    return [
        Panel(
            "Budgets burn", "none",
            [
                Query(burn.format(ask.of(f"ctxpipe:slo_errors:ratio_rate{window}")), f"{legend('slo')} {window}")
                for window in ("1h", "6h")
            ],
            "How many times faster than allowed each objective is missed, within the last hour and six hours. 1 spends "
            "exactly the budget; from 14.4 on somebody is woken.",
            "bargauge", BURN, "objectives", width=6,
        ),
        Panel(
            "Requests by outcome", "reqps", [Query(ask.rate(lookups, "outcome"), legend("outcome"))],
            "What callers get. All that is not in_time counts against latency; shed and failed against availability.",
            heading="budget-of-availability", width=6, stacked=True,
        ),
        Panel(
            "Answers by status", "cps", [Query(ask.rate("ctxpipe_lookup_answers_total", "status"), legend("status"))],
            "Bundles handed out: stale counts against freshness, partial and fallback against completeness.",
            heading="budget-of-freshness", width=6, stacked=True,
        ),
        Panel(
            "Time of a request, 99 of 100", "s",
            [Query(ask.quantile(0.99, "ctxpipe_lookup_seconds", "operation"), legend("operation"))],
            "In the service, by operation.", heading="budget-of-latency", width=6,
        ),
    ]  # fmt: skip


def _outside(ask: Asking) -> list[Panel]:
    return [
        Panel(
            "Canary", "none", [Query(ask.smallest("ctxpipe_canary_up", "source"), legend("source"))],
            "Whether a row written to the source comes out of lookups in time.", "state-timeline",
            LOW_IS_BAD, "the-canary-is-late", names={"0": ("late", "red"), "1": ("in time", "green")},
        ),
        Panel(
            "Age of the newest canary that lookups show", "s",
            [Query(ask.greatest("ctxpipe_canary_age_seconds", "source"), legend("source"))],
            "Rises steadily while anything on the way stands.", heading="the-canary-is-late",
        ),
        Panel(
            "Canary: commit to lookup", "s",
            [Query(ask.quantile(q, "ctxpipe_canary_seconds", "source"), f"{legend('source')} {name}")
             for q, name in ((0.5, "half"), (0.99, "99 of 100"))],
            "What a caller would have seen of a change.", logarithmic=True,
        ),
    ]  # fmt: skip


def _way(ask: Asking) -> list[Panel]:
    return [
        Panel(
            "Watermark", "s", [Query(ask.greatest("ctxpipe_watermark_age_seconds", "context, source"),
                                     legend("context", "source"))],
            "Age up to which all of a source has been applied.", heading="a-connector-has-stopped",
        ),
        Panel(
            "Changes that reach Redis late", "percentunit",
            [Query(ask.share("ctxpipe_freshness_late_total", "ctxpipe_freshness_updates_total", "context",
                             'stage="in_redis"'), legend("context"))],
            "Share over the objective of their context.", steps=SHARE_OF_TEN, heading="a-stage-is-late",
        ),
        Panel(
            "Groups that are not well", "none",
            [Query(ask.of("ctxpipe_group_status", 'status!="OK"') + " == 1")],
            "Empty is good.", "table", heading="consumer-groups",
        ),
        Panel(
            "Processes", "none",
            [Query(ask.smallest("up", "job, role, instance", 'job=~".*ctxpipe.*"'), legend("job", "role", "instance"))],
            "Whether each answers Prometheus.", "state-timeline", LOW_IS_BAD, "a-role-is-down", names=UP,
        ),
        Panel(
            "Dead letters", "short", [Query(ask.total("ctxpipe_dead_letters_waiting", "context"), legend("context"))],
            "Records that were set aside and wait for somebody.", steps=((None, "green"), (1, "orange")),
            heading="dead-letters-wait",
        ),
        Panel(
            "Alerts", "none",
            [Query('ALERTS{alertname=~"Ctxpipe.*", alertstate="firing", namespace=~"$namespace"}')],
            "Those that fire. Empty is good.", "table", heading="runbook",
        ),
    ]  # fmt: skip


def pipeline() -> Dashboard:
    ask = Asking(CONTEXT)
    seconds = "ctxpipe_freshness_seconds"
    stages = [
        Panel(
            "From the commit to the end of each stage, 99 of 100", "s",
            [Query(ask.quantile(0.99, seconds, "stage"), legend("stage"))],
            "All times are from the commit at the source: the first stage that jumps is the cause, the others wait.",
            heading="a-stage-is-late", width=12, logarithmic=True,
        ),
        Panel(
            "The same, half of them", "s", [Query(ask.quantile(0.5, seconds, "stage"), legend("stage"))],
            "What a usual change needs.", width=12, logarithmic=True,
        ),
        Panel(
            "Late", "percentunit",
            [Query(ask.share("ctxpipe_freshness_late_total", "ctxpipe_freshness_updates_total", "context, stage"),
                   legend("context", "stage"))],
            "Share of the changes over the budget of the stage.", steps=SHARE_OF_TEN, heading="a-stage-is-late",
        ),
        Panel(
            "Changes", "cps", [Query(ask.rate("ctxpipe_freshness_updates_total", "stage"), legend("stage"))],
            "That got to the end of each stage. Where they pile up the lines part.",
        ),
        Panel(
            "Budgets", "s", [Query(ask.greatest("ctxpipe_freshness_budget_seconds", "context, stage"),
                                   legend("context", "stage"))],
            "What each stage may have taken, from the commit on.", "table",
        ),
    ]  # fmt: skip
    connectors = [
        Panel(
            "Read and published", "cps",
            [Query(ask.rate("ctxpipe_connector_events_total", "source", all_of=True), f"{legend('source')} read"),
             Query(ask.rate("ctxpipe_connector_published_records_total", "source", all_of=True),
                   f"{legend('source')} in Kafka")],
            "Changes read from each source, and records that Kafka has taken.", heading="a-connector-has-stopped",
        ),
        Panel(
            "Published bytes", "Bps",
            [Query(ask.rate("ctxpipe_connector_published_bytes_total", "source", all_of=True), legend("source"))],
            "That Kafka has taken.",
        ),
        Panel(
            "Read and not yet in Kafka", "bytes",
            [Query(ask.total("ctxpipe_connector_queue_bytes", "source", all_of=True), legend("source"))],
            "Rises while Kafka is slow.",
        ),
    ]  # fmt: skip
    rows = [
        Row("Freshness by stage", stages),
        Row("Connectors", connectors),
        Row("Workers", _workers(ask)),
    ]
    told = "The way of a change: how long after its commit it got how far, and what each role does meanwhile."
    return Dashboard("ctxpipe-pipeline", "ctxpipe pipeline", told, rows, [CONTEXT])


def _workers(ask: Asking) -> list[Panel]:
    batch = "ctxpipe_worker_batch_seconds"
    return [
        Panel(
            "Changes", "cps",
            [Query(ask.rate("ctxpipe_worker_events_total", "context"), f"{legend('context')} applied"),
             Query(ask.rate("ctxpipe_worker_stale_total", "context"), f"{legend('context')} older than the row")],
            "Stale ones are repetitions: a redelivery, a replay.",
        ),
        Panel(
            "Written", "cps",
            [Query(ask.rate("ctxpipe_worker_bundles_total", "context, kind"), legend("context", "kind"))],
            "Bundles and fragments.",
        ),
        Panel(
            "Fan-out", "cps", [Query(ask.rate("ctxpipe_worker_fan_out_keys_total", "context"), legend("context"))],
            "Keys that one change made others rebuild. Much of it: link the section instead of copying it.",
            heading="a-group-falls-behind",
        ),
        Panel(
            "Time of a batch", "s",
            [Query(ask.quantile(0.5, batch, "context"), f"{legend('context')} half"),
             Query(ask.quantile(0.99, batch, "context"), f"{legend('context')} 99 of 100")],
            "To store it, durably.", heading="a-group-falls-behind",
        ),
        Panel(
            "Records of a batch", "short",
            [Query(ask.quantile(0.5, "ctxpipe_worker_batch_records", "context"), legend("context"))],
            "Large while catching up, small while live.",
        ),
        Panel(
            "Round trips per batch", "none",
            [Query(ask.share("ctxpipe_worker_round_trips_total", "ctxpipe_worker_batches_total", "context"),
                   legend("context"))],
            "To the store.",
        ),
        Panel(
            "Behind the ends of the topics", "short",
            [Query(ask.total("ctxpipe_worker_lag_records", "context"), legend("context"))],
            "As the workers see it themselves.", heading="a-group-falls-behind",
        ),
        Panel(
            "Age of the newest change", "s",
            [Query(ask.greatest("ctxpipe_worker_applied_age_seconds", "context, source"), legend("context", "source"))],
            "When it was applied.",
        ),
        Panel(
            "Outages and dead letters", "cps",
            [Query(ask.rate("ctxpipe_worker_retries_total", "context"), f"{legend('context')} batches again"),
             Query(ask.rate("ctxpipe_worker_dead_letters_total", "context"), f"{legend('context')} set aside")],
            "Batches that met an outage, records that could not be applied.", heading="workers-cant-write",
        ),
    ]  # fmt: skip


def lag() -> Dashboard:
    ask = Asking(GROUP)
    rows = [
        Row("Groups", _groups(ask)),
        Row("Partitions", _partitions(ask)),
        Row("The collector itself", _collector(ask)),
    ]
    told = "Consumer groups, ours and others: how far behind in seconds, whether they catch up, what stands still."
    return Dashboard("ctxpipe-lag", "ctxpipe lag", told, rows, [GROUP])


def _groups(ask: Asking) -> list[Panel]:
    statuses = ("OK", "UNKNOWN", "WARN", "STOP", "STALL", "REWIND")
    colours: tuple[Colour, ...] = ("green", "text", "yellow", "red", "red", "orange")
    coded = " or ".join(
        f"({number} * ({ask.greatest('ctxpipe_group_status', 'group', one_of('status', [status]))} == 1))"
        for number, status in enumerate(statuses)
    )
    names = {str(number): (status, colours[number]) for number, status in enumerate(statuses)}
    steps: tuple[tuple[float | None, Colour], ...] = ((None, "green"), (1, "text"), (2, "yellow"), (3, "red"))
    topic = "group, topic"
    return [
        Panel("Status", "none", [Query(coded, legend("group"))], "By the rules of `ctxpipe lag`.", "state-timeline",
              steps, "consumer-groups", 24, 8, names),
        Panel("Lag in seconds", "s",
              [Query(ask.greatest("ctxpipe_group_lag_seconds", topic), legend("group", "topic"))],
              "Age of the last change that was applied, where others wait. A gap: not known.",
              steps=((None, "green"), (60, "red")), heading="a-group-falls-behind", width=12),
        Panel("Lag in seconds is known", "none",
              [Query(ask.smallest("ctxpipe_group_lag_seconds_known", topic), legend("group", "topic"))],
              "Where it is not, `ctxpipe lag` says why.", "state-timeline", LOW_IS_BAD,
              "the-state-of-a-group-is-unknown", 12, names={"0": ("unknown", "yellow"), "1": ("known", "green")}),
        Panel("Lag in records", "short",
              [Query(ask.total("ctxpipe_group_lag_records", topic), legend("group", "topic"))],
              "Not committed yet. Of compacted topics and of transactions it says more than there is.",
              heading="a-group-falls-behind"),
        Panel("Velocity", "cps",
              [Query(ask.total("ctxpipe_group_lag_velocity_records_per_second", topic), legend("group", "topic"))],
              "Growth of the lag; below 0 it shrinks.", smallest=None),
        Panel("Time to catch up", "s",
              [Query(ask.greatest("ctxpipe_group_catch_up_seconds", topic), legend("group", "topic"))],
              "At this pace; only where the lag shrinks.", heading="a-group-falls-behind"),
        Panel("Left before records are lost", "percentunit",
              [Query(ask.smallest("ctxpipe_group_retention_headroom_ratio", topic), legend("group", "topic"))],
              "Share of the log behind the group.", steps=((None, "red"), (0.05, "orange"), (0.2, "green")),
              heading="records-are-about-to-be-lost"),
        Panel("Members", "none", [Query(ask.total("ctxpipe_group_members", "group"), legend("group"))],
              "Consumers of the group.", steps=LOW_IS_BAD, heading="a-group-has-stopped"),
        Panel("Rebalances", "short",
              [Query(f"sum by (group) (increase({ask.of('ctxpipe_group_rebalances_total')}[10m]))", legend("group"))],
              "Within ten minutes.", steps=((None, "green"), (3, "yellow")), heading="a-group-keeps-rebalancing"),
    ]  # fmt: skip


def _partitions(ask: Asking) -> list[Panel]:
    one = "group, topic, partition"
    label = legend("topic", "partition")
    return [
        Panel("Partitions that are not well", "none",
              [Query(f"max by ({one}, status) ({ask.of('ctxpipe_partition_status')}) == 1")], "Empty is good.", "table",
              heading="a-group-stands-still", width=12),
        Panel("Most behind, in seconds", "s",
              [Query(f"topk(10, {ask.greatest('ctxpipe_partition_lag_seconds', one)})", label)],
              "One far above the others: a hot key, or one that stands. Only with `collector.partitions: true`.",
              heading="a-group-stands-still", width=12),
        Panel("Most behind, in records", "short",
              [Query(f"topk(10, {ask.total('ctxpipe_partition_lag_records', one)})", label)],
              "The ten worst.", width=8),
        Panel("Committed", "cps",
              [Query(f"topk(10, sum by ({one}) (deriv({ask.of('ctxpipe_partition_committed_offset')}[5m])))", label)],
              "Records per second; below 0 somebody went back.", smallest=None, heading="a-group-went-back"),
        Panel("Written", "cps",
              [Query("topk(10, sum by (topic, partition) (deriv("
                     f"{ask.of('ctxpipe_partition_end_offset', all_of=True)}[5m])))", label)],
              "Records per second at the ends of partitions.", smallest=None),
    ]  # fmt: skip


def _collector(ask: Asking) -> list[Panel]:
    heading = "the-collector-is-away"

    def query(metric: str) -> list[Query]:
        return [Query(ask.greatest(metric, "part", all_of=True), legend("part"))]

    since = f"time() - {ask.greatest('ctxpipe_collector_last_success_timestamp_seconds', 'part', all_of=True)}"
    clamped = ask.of("ctxpipe_collector_clamped_total")
    return [
        Panel("Complete", "none", [Query(ask.smallest("ctxpipe_collector_up", "part", all_of=True), legend("part"))],
              "Whether the last collection of each part was.", "state-timeline", LOW_IS_BAD, heading, 6, names=UP),
        Panel("Since the last complete one", "s", [Query(since, legend("part"))], "What is shown is so old.",
              steps=((None, "green"), (60, "red")), heading=heading, width=6),
        Panel("Takes", "s", query("ctxpipe_collector_duration_seconds"), "Per collection.",
              steps=((None, "green"), (10, "yellow")), heading=heading, width=4),
        Panel("Processor time", "s", query("ctxpipe_collector_cpu_seconds"), "Per collection.", width=4),
        Panel("Clamped", "short", [Query(f"sum by (group) (increase({clamped}[1h]))", legend("group"))],
              "Lags below zero shown as zero, within an hour: offsets beyond the end.", heading="a-group-went-back",
              width=4),
    ]  # fmt: skip
