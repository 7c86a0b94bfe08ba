"""The dashboards for who looks at one part: lookup, embedding and sources."""

from __future__ import annotations

from deploy.pages.boards import LOW_IS_BAD, SHARE_OF_TEN, UP
from deploy.pages.expressions import Asking, legend
from deploy.pages.panels import Choice, Dashboard, Panel, Query, Row

CONTEXT = Choice("context", "ctxpipe_lookup_answers_total")
EMBEDS = Choice("context", "ctxpipe_active_space_info")
SOURCE = Choice("source", "ctxpipe_source_up")


def lookup() -> Dashboard:
    ask = Asking(CONTEXT)
    rows = [
        Row("Requests", _requests(ask)),
        Row("Where answers come from", _rungs(ask)),
        Row("What this process keeps", _kept(ask)),
    ]
    told = "What callers get, from which rung, how fast, and who is refused."
    return Dashboard("ctxpipe-lookup", "ctxpipe lookup", told, rows, [CONTEXT])


def _requests(ask: Asking) -> list[Panel]:
    seconds = "ctxpipe_lookup_seconds"
    requests = "ctxpipe_lookup_requests_total"
    return [
        Panel("By outcome", "reqps", [Query(ask.rate(requests, "outcome", all_of=True), legend("outcome"))],
              "All that is not in_time counts against latency.", heading="budget-of-latency", stacked=True),
        Panel("Not answered in time", "percentunit",
              [Query(ask.share(requests, requests, "operation", 'outcome!="in_time"', all_of=True),
                     legend("operation"))],
              "Share, by operation.", steps=((None, "green"), (0.01, "red")), heading="budget-of-latency"),
        Panel("Time, by operation", "s",
              [Query(ask.quantile(share, seconds, "operation", all_of=True), f"{legend('operation')} {name}")
               for share, name in ((0.5, "half"), (0.99, "99 of 100"), (0.999, "999 of 1000"))],
              "In the service.", heading="budget-of-latency", logarithmic=True),
        Panel("Refused for load", "reqps", [Query(ask.rate("ctxpipe_lookup_shed_total", "reason", all_of=True),
                                                  legend("reason"))],
              "Why requests were not let in.", heading="requests-are-shed"),
        Panel("On their way", "short",
              [Query(ask.total("ctxpipe_lookup_in_flight_requests", "instance", all_of=True), legend("instance")),
               Query(ask.total("ctxpipe_lookup_limit_requests", "instance", all_of=True),
                     f"{legend('instance')} limit")],
              "Requests that are being answered, and how many are let in.", heading="requests-are-shed"),
        Panel("Refused without a credential", "reqps",
              [Query(ask.rate("ctxpipe_lookup_refused_total", "kind", all_of=True), legend("kind"))],
              "Or without the scope.", heading="credentials-are-refused"),
    ]  # fmt: skip


def _rungs(ask: Asking) -> list[Panel]:
    answers = "ctxpipe_lookup_rung_answers_total"
    below = 'rung=~"replica|last_known"'
    return [
        Panel("Answers by status", "cps", [Query(ask.rate("ctxpipe_lookup_answers_total", "status"), legend("status"))],
              "Bundles handed out.", heading="budget-of-completeness", stacked=True),
        Panel("Bundles by rung", "cps", [Query(ask.rate(answers, "rung"), legend("rung"))],
              "near: this process's cache. store: Redis. Then what is left when Redis is away.", stacked=True,
              heading="the-store-does-not-answer-lookups"),
        Panel("From below the store", "percentunit",
              [Query(ask.share(answers, answers, "context", below), legend("context"))],
              "Share of the bundles.", steps=SHARE_OF_TEN, heading="the-store-does-not-answer-lookups"),
        Panel("Time of a rung, 99 of 100", "s",
              [Query(ask.quantile(0.99, "ctxpipe_lookup_rung_seconds", "rung"), legend("rung"))],
              "Until it had answered.", logarithmic=True),
        Panel("Passed", "cps",
              [Query(ask.rate("ctxpipe_lookup_rung_passed_total", "rung, reason"), legend("rung", "reason"))],
              "Times that a rung did not answer, and why.", heading="the-store-does-not-answer-lookups"),
        Panel("Hedged reads", "cps",
              [Query(ask.rate("ctxpipe_lookup_hedges_total", "context"), f"{legend('context')} asked twice"),
               Query(ask.rate("ctxpipe_lookup_hedges_won_total", "context"), f"{legend('context')} replica was first")],
              "Sent to the replica too, because the store took long."),
    ]  # fmt: skip


def _kept(ask: Asking) -> list[Panel]:
    return [
        Panel("Near cache", "cps", [Query(ask.rate("ctxpipe_lookup_near_events_total", "kind"), legend("kind"))],
              "Hits, misses, invalidations, flushes, evictions."),
        Panel("Near cache, bytes", "bytes",
              [Query(ask.total("ctxpipe_lookup_near_bytes", "context, instance"), legend("context", "instance"))],
              "In memory."),
        Panel("Known from last time", "short",
              [Query(ask.total("ctxpipe_lookup_last_known_bundles", "context, instance"),
                     legend("context", "instance"))],
              "Bundles that can be answered while Redis is away."),
    ]  # fmt: skip


def embedding() -> Dashboard:
    ask = Asking(EMBEDS)
    rows = [
        Row("Texts to vectors", _vectors(ask)),
        Row("Serving replicas", _replicas(ask)),
        Row("Searches", _searches(ask)),
    ]
    told = "From changed texts over vectors in Kafka to the indexes of searches, and what searches get."
    return Dashboard("ctxpipe-embedding", "ctxpipe embedding", told, rows, [EMBEDS])


def _vectors(ask: Asking) -> list[Panel]:
    name, stopped = legend("context", "space"), "the-embedder-has-stopped"

    def counted(*metrics: tuple[str, str]) -> list[Query]:
        return [Query(ask.rate(f"ctxpipe_embedding_{metric}_total", "context, space"), f"{name} {told}")
                for metric, told in metrics]  # fmt: skip

    seconds = "ctxpipe_embedding_seconds"
    late = ("ctxpipe_freshness_late_total", "ctxpipe_freshness_updates_total", "context, stage")
    return [
        Panel("Behind the ends of the topics", "short",
              [Query(ask.total("ctxpipe_embedding_lag_records", "context, space"), name)],
              "Bundles and texts that wait. It is gone when the embedder is.", heading=stopped),
        Panel("From bundles to texts", "cps",
              counted(("bundles", "looked at"), ("texts", "changed"), ("spared", "as before")),
              "Only changed texts are embedded."),
        Panel("Vectors", "cps", counted(("vectors", "texts"), ("pieces", "pieces")),
              "Texts that were embedded, and the pieces of long ones."),
        Panel("Time to embed a batch", "s",
              [Query(ask.quantile(share, seconds, "context"), f"{legend('context')} {told}")
               for share, told in ((0.5, "half"), (0.99, "99 of 100"))],
              "In the model, or at its server.", heading=stopped),
        Panel("Late", "percentunit",
              [Query(ask.share(*late, 'stage=~"embedded|in_faiss"'), legend("context", "stage"))],
              "Share of the changes over the budget of the stage.", steps=SHARE_OF_TEN, heading="a-stage-is-late"),
        Panel("Trouble", "cps", counted(("retries", "batches again"), ("refused", "never a vector"), ("cut", "cut")),
              "Batches tried again, texts that the model refuses, texts whose end is in no vector.",
              heading="texts-get-no-vector"),
        Panel("Cost", "currencyUSD", [Query(ask.total("ctxpipe_embedding_cost", "context, space"), name)],
              "Of the running processes so far, by their prices."),
    ]  # fmt: skip


def _replicas(ask: Asking) -> list[Panel]:
    name, heading = legend("context", "instance"), "a-serving-replica-stands-still"
    by = "context, instance"
    return [
        Panel("Applied", "cps", [Query(ask.rate("ctxpipe_replica_records_total", by), name)],
              "Texts and vectors, by replica. All should run alike: one that lies flat stands.", heading=heading),
        Panel("Behind", "short", [Query(ask.total("ctxpipe_replica_lag_records", by), name)],
              "As the replica sees it; one that stands does not see it.", heading=heading),
        Panel("Refused and begun anew", "short",
              [Query(f"sum by ({by}) (increase({ask.of('ctxpipe_replica_refused_total')}[1h]))", f"{name} refused"),
               Query(f"sum by ({by}) (increase({ask.of('ctxpipe_replica_anew_total')}[1h]))", f"{name} anew")],
              "Within an hour.", heading=heading),
        Panel("Space that answers", "none", [Query(f"{ask.of('ctxpipe_active_space_info')} == 1")],
              "By replica; two at a time only while a space takes over.", "table", width=24, height=5),
    ]  # fmt: skip


def _searches(ask: Asking) -> list[Panel]:
    heading = "searches-are-degraded"
    return [
        Panel("By mode", "reqps", [Query(ask.rate("ctxpipe_search_answers_total", "mode"), legend("mode"))],
              "How they were answered.", stacked=True),
        Panel("Degraded", "reqps",
              [Query(ask.rate("ctxpipe_search_degraded_total", "context, part"),
                     f"{legend('context')} without {legend('part')}"),
               Query(ask.rate("ctxpipe_search_unavailable_total", "context"), f"{legend('context')} not at all")],
              "Answered by less than was asked, or by nothing.", heading=heading),
        Panel("Hits left out", "cps",
              [Query(ask.rate("ctxpipe_search_moved_on_total", "context"), f"{legend('context')} has another text now"),
               Query(ask.rate("ctxpipe_search_dropped_total", "context"), f"{legend('context')} is gone")],
              "Indexes that are behind Redis show here.", heading="a-serving-replica-stands-still"),
    ]  # fmt: skip


def sources() -> Dashboard:
    ask = Asking(SOURCE)
    rows = [
        Row("Sources", _servers(ask)),
        Row("Postgres: what the server keeps for us", _slots(ask)),
        Row("Cassandra and Scylla", _logs(ask)),
        Row("Connectors", _connectors(ask)),
        Row("Dead letters, of contexts and sources", _letters()),
    ]
    told = "What sources keep for us, how much longer they can, and what their connectors do."
    return Dashboard("ctxpipe-sources", "ctxpipe sources", told, rows, [SOURCE])


def _servers(ask: Asking) -> list[Panel]:
    name = legend("source")
    return [
        Panel("Answers", "none", [Query(ask.smallest("ctxpipe_source_up", "source"), name)],
              "Whether the server answered the collector.", "state-timeline", LOW_IS_BAD, "a-source-is-away", 12,
              names=UP),
        Panel("Slot is read", "none", [Query(ask.smallest("ctxpipe_source_slot_active", "source"), name)],
              "Whether a connector reads it.", "state-timeline", LOW_IS_BAD, "a-connector-has-stopped", 12,
              names={"0": ("by nobody", "red"), "1": ("yes", "green")}),
        Panel("Canaries", "cps",
              [Query(ask.rate("ctxpipe_canary_written_total", "source"), f"{name} written"),
               Query(ask.rate("ctxpipe_canary_seen_total", "source"), f"{name} seen")],
              "Rows written, and read back through lookups.", heading="the-canary-is-silent", width=12),
        Panel("No change comes sooner than", "s", [Query(ask.greatest("ctxpipe_source_floor_seconds", "source"), name)],
              "Confidence window or poll interval. Nobody needs to look for this delay.", width=12),
    ]  # fmt: skip


def _slots(ask: Asking) -> list[Panel]:
    name, lost = legend("source"), "a-slot-is-lost"
    soon = f"predict_linear({ask.of('ctxpipe_source_safe_wal_bytes')}[1h], 4 * 3600)"
    return [
        Panel("Retained", "bytes", [Query(ask.greatest("ctxpipe_source_retained_bytes", "source"), name)],
              "Log the server keeps for us: its disk.", steps=((None, "green"), (5e9, "orange")), heading=lost),
        Panel("Unconfirmed", "bytes",
              [Query(ask.greatest("ctxpipe_source_unconfirmed_bytes", "source"), name),
               Query(ask.greatest("ctxpipe_connector_position_lag_bytes", "source"), f"{name} as the connector says")],
              "Log we have not confirmed: what is left to read.", heading="a-connector-has-stopped"),
        Panel("Left before the slot is lost", "bytes",
              [Query(ask.smallest("ctxpipe_source_safe_wal_bytes", "source"), name),
               Query(f"min by (source) ({soon})", f"{name} in four hours")],
              "Absent where there is no limit.", steps=((None, "red"), (67108864, "green")), heading=lost),
        Panel("wal_status", "none", [Query(f"max by (source, status) ({ask.of('ctxpipe_source_wal_status')}) == 1")],
              "reserved and extended are well; unreserved may be lost; lost is.", "table", heading=lost, width=24,
              height=5),
    ]  # fmt: skip


def _logs(ask: Asking) -> list[Panel]:
    raw, limit = "ctxpipe_source_cdc_raw_bytes", "ctxpipe_source_cdc_raw_limit_bytes"
    used = f"{ask.greatest(raw, 'source, node')} / {ask.greatest(limit, 'source, node')}"
    since = f"time() - {ask.greatest('ctxpipe_source_generation_timestamp_seconds', 'source')}"
    return [
        Panel("cdc_raw used", "percentunit", [Query(used, legend("source", "node"))],
              "When it is full Cassandra refuses writes.", steps=((None, "green"), (0.7, "orange"), (0.9, "red")),
              heading="cdc_raw-fills"),
        Panel("Until unread log is dropped", "s",
              [Query(ask.smallest("ctxpipe_source_log_headroom_seconds", "source"), legend("source"))],
              "What we have not read by then is lost.", steps=((None, "red"), (3600, "orange"), (21600, "green")),
              heading="the-log-of-a-source-runs-out"),
        Panel("Age of Scylla's generation", "s", [Query(since, legend("source"))],
              "A new one begins when nodes come or go.", smallest=None),
    ]  # fmt: skip


def _connectors(ask: Asking) -> list[Panel]:
    name = legend("source")
    return [
        Panel("Changes by operation", "cps",
              [Query(ask.rate("ctxpipe_connector_events_total", "source, operation"), legend("source", "operation"))],
              "Read from the source.", stacked=True),
        Panel("Age of the newest transaction", "s",
              [Query(ask.greatest("ctxpipe_connector_commit_age_seconds", "source"), name)],
              "That was published; rises on a quiet source, and on one that stands.",
              heading="a-connector-has-stopped"),
        Panel("Snapshots", "cps",
              [Query(ask.rate("ctxpipe_connector_snapshot_rows_total", "source, table"), legend("source", "table"))],
              "Rows read by them."),
        Panel("Trouble", "short",
              [Query(f"sum by (source) (increase({ask.of('ctxpipe_connector_reconnects_total')}[15m]))",
                     f"{name} connected anew"),
               Query(f"sum by (source) (increase({ask.of('ctxpipe_connector_set_aside_total')}[15m]))",
                     f"{name} rows set aside")],
              "Within 15 minutes.", heading="a-connector-connects-again-and-again", width=12),
    ]  # fmt: skip


def _letters() -> list[Panel]:
    ask, name = Asking(), legend("context")

    def query(metric: str) -> list[Query]:
        return [Query(ask.greatest(f"ctxpipe_dead_letters_{metric}", "context"), name)]

    return [
        Panel("Waiting", "short", query("waiting"), "Neither redriven nor discarded.",
              steps=((None, "green"), (1, "orange")), heading="dead-letters-wait", width=6),
        Panel("Wrong bundles", "short", query("bundles"), "Because of them.", heading="dead-letters-wait", width=6),
        Panel("Oldest", "s", query("oldest_age_seconds"), "Its age.", heading="dead-letters-wait", width=4),
        Panel("Until the oldest expires", "s", query("expiry_seconds"), "Absent where nothing expires.",
              steps=((None, "red"), (86400, "green")), heading="dead-letters-expire", width=4),
        Panel("Expired, never looked at", "short",
              [Query(f"sum by (context) (increase({ask.of('ctxpipe_dead_letters_expired_total')}[1d]))", name)],
              "Within a day.", steps=((None, "green"), (1, "red")), heading="dead-letters-expire", width=4),
    ]  # fmt: skip
