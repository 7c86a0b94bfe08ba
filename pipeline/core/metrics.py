"""Every metric of ctxpipe: its name, unit, labels and meaning in one place, on a registry of our own.

A process exposes them with `expose` (its own HTTP server) or `serve` (a thread with one). Labels have few values: a
source, a context, an operation, a status; never a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector

from pipeline.core.errors import EnvironmentProblem

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)


class Definition(NamedTuple):
    """One metric as it stands in the list; `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


DEFINITIONS: list[Definition] = []

LATENCIES_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
"""Bounds around the promises: lookups within 20 ms, freshness within 8 and 30 ms."""
FRESHNESS_S = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900, 3600)
"""Bounds of ages: from the promise of a live change to a backlog of an hour."""
MODEL_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bounds that OpenTelemetry asks for of calls to models."""
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    DEFINITIONS.append(Definition(name, "counter", labels, meaning))
    return Counter(name, meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    DEFINITIONS.append(Definition(name, "gauge", labels, meaning))
    return Gauge(name, meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, bounds: Sequence[float], *labels: str) -> Histogram:
    DEFINITIONS.append(Definition(name, "histogram", labels, meaning))
    return Histogram(name, meaning, labels, registry=REGISTRY, buckets=bounds)


# Connector: source → Kafka.
connector_events = _counter("ctxpipe_connector_events_total", "Changes read from the source.", "source", "operation")
connector_published_bytes = _counter("ctxpipe_connector_published_bytes_total", "Bytes Kafka has taken.", "source")
connector_published_records = _counter("ctxpipe_connector_published_records_total", "Records it has taken.", "source")
connector_queue_bytes = _gauge("ctxpipe_connector_queue_bytes", "Read and not yet acknowledged by Kafka.", "source")
connector_position_lag_bytes = _gauge(
    "ctxpipe_connector_position_lag_bytes", "Log written by the source and not yet confirmed to it.", "source"
)
connector_commit_age_seconds = _gauge(
    "ctxpipe_connector_commit_age_seconds", "Age of the newest transaction that was published.", "source"
)
connector_reconnects = _counter("ctxpipe_connector_reconnects_total", "Starts after a lost connection.", "source")
connector_snapshot_rows = _counter(
    "ctxpipe_connector_snapshot_rows_total", "Rows read by snapshots.", "source", "table"
)
connector_set_aside = _counter("ctxpipe_connector_set_aside_total", "Rows that could not be converted.", "source")

# Worker: Kafka → Redis.
worker_batches = _counter("ctxpipe_worker_batches_total", "Batches of records that were stored.", "context")
worker_events = _counter("ctxpipe_worker_events_total", "Changes that were applied, stale ones included.", "context")
worker_stale = _counter("ctxpipe_worker_stale_total", "Changes older than the stored row.", "context")
worker_bundles = _counter("ctxpipe_worker_bundles_total", "Bundles and fragments written.", "context", "kind")
worker_dead_letters = _counter("ctxpipe_worker_dead_letters_total", "Records set aside.", "context")
worker_round_trips = _counter("ctxpipe_worker_round_trips_total", "Round trips to the store.", "context")
worker_retries = _counter("ctxpipe_worker_retries_total", "Batches tried again after an outage.", "context")
worker_fan_out_keys = _counter("ctxpipe_worker_fan_out_keys_total", "Keys sent to the fan-out lane.", "context")
worker_batch_records = _histogram("ctxpipe_worker_batch_records", "Records per batch.", SIZES, "context")
worker_batch_seconds = _histogram("ctxpipe_worker_batch_seconds", "Time to store a batch.", LATENCIES_S, "context")
worker_lag_records = _gauge("ctxpipe_worker_lag_records", "Records behind the end of the topics.", "context")
worker_applied_age_seconds = _gauge(
    "ctxpipe_worker_applied_age_seconds", "Age of the newest change that was applied.", "context", "source"
)

# Embedding: Redis → texts → vectors in Kafka.
embedding_bundles = _counter("ctxpipe_embedding_bundles_total", "Bundles looked at for a text.", "context", "space")
embedding_texts = _counter("ctxpipe_embedding_texts_total", "Texts that changed, ends included.", "context", "space")
embedding_spared = _counter("ctxpipe_embedding_spared_total", "Texts passed over as done.", "context", "space")
embedding_vectors = _counter("ctxpipe_embedding_vectors_total", "Texts that were embedded.", "context", "space")
embedding_pieces = _counter("ctxpipe_embedding_pieces_total", "Pieces of them, each a vector.", "context", "space")
embedding_cut = _counter("ctxpipe_embedding_cut_total", "Texts of which an end is in no vector.", "context", "space")
embedding_refused = _counter("ctxpipe_embedding_refused_total", "Texts that never get a vector.", "context", "space")
embedding_retries = _counter("ctxpipe_embedding_retries_total", "Batches tried again.", "context", "space")
embedding_seconds = _histogram(
    "ctxpipe_embedding_seconds", "Time to embed some texts.", LATENCIES_S, "context", "space"
)
embedding_cost = _gauge("ctxpipe_embedding_cost", "Cost of this process so far, by its prices.", "context", "space")
embedding_lag_records = _gauge("ctxpipe_embedding_lag_records", "Behind the ends of the topics.", "context", "space")

# Lookup: Redis → the orchestrator.
lookup_answers = _counter("ctxpipe_lookup_answers_total", "Bundles answered, by status.", "context", "status")
lookup_rung_answers = _counter("ctxpipe_lookup_rung_answers_total", "Bundles read, by where.", "context", "rung")
lookup_rung_passed = _counter(
    "ctxpipe_lookup_rung_passed_total", "Times that a rung did not answer, and why.", "context", "rung", "reason"
)
lookup_rung_seconds = _histogram(
    "ctxpipe_lookup_rung_seconds", "Time until a rung had answered.", LATENCIES_S, "context", "rung"
)
lookup_shed = _counter("ctxpipe_lookup_shed_total", "Requests refused because they could not be in time.", "reason")
lookup_hedges = _counter("ctxpipe_lookup_hedges_total", "Reads sent to the replica too.", "context")
lookup_hedges_won = _counter("ctxpipe_lookup_hedges_won_total", "Those that it answered first.", "context")
lookup_near_bytes = _gauge("ctxpipe_lookup_near_bytes", "Bytes in the near cache.", "context")
lookup_near_events = _counter(
    "ctxpipe_lookup_near_events_total", "Hits, misses, invalidations, flushes, evictions.", "context", "kind"
)
lookup_known = _gauge("ctxpipe_lookup_last_known_bundles", "Bundles that are known from last time.", "context")
lookup_in_flight = _gauge("ctxpipe_lookup_in_flight_requests", "Requests that are being answered.")
lookup_limit = _gauge("ctxpipe_lookup_limit_requests", "So many are let in at once, as things are.")
lookup_refused = _counter("ctxpipe_lookup_refused_total", "Requests without a good credential or scope.", "kind")
lookup_seconds = _histogram("ctxpipe_lookup_seconds", "Time of a request in the service.", LATENCIES_S, "operation")

# Search: Kafka → the indexes of a space → the orchestrator.
active_space = _gauge("ctxpipe_active_space_info", "1 for the space that answers searches here.", "context", "space")
search_answers = _counter("ctxpipe_search_answers_total", "Searches answered, by how.", "context", "mode")
search_degraded = _counter("ctxpipe_search_degraded_total", "Answered by less than was asked.", "context", "part")
search_unavailable = _counter("ctxpipe_search_unavailable_total", "Searches that nothing could answer.", "context")
search_moved_on = _counter("ctxpipe_search_moved_on_total", "Hits whose bundle has another text now.", "context")
search_dropped = _counter("ctxpipe_search_dropped_total", "Hits whose bundle is gone.", "context")
replica_records = _counter("ctxpipe_replica_records_total", "Texts and vectors applied.", "context", "space")
replica_refused = _counter("ctxpipe_replica_refused_total", "Records that are none of the space.", "context", "space")
replica_anew = _counter("ctxpipe_replica_anew_total", "Indexes that had to start anew.", "context", "space")
replica_lag_records = _gauge("ctxpipe_replica_lag_records", "Behind the end of the topics.", "context", "space")

# What orchestrators get of it: the objectives of alerts count these.
lookup_requests = _counter(
    "ctxpipe_lookup_requests_total", "Requests by outcome: in_time, late, shed, failed.", "operation", "outcome"
)

# Freshness: how long after the source's commit a change had come so far; stages in the order of the path.
freshness_seconds = _histogram(
    "ctxpipe_freshness_seconds", "From the source's commit to a stage's end.", FRESHNESS_S, "context", "stage"
)
freshness_updates = _counter("ctxpipe_freshness_updates_total", "Updates that got there.", "context", "stage")
freshness_late = _counter("ctxpipe_freshness_late_total", "Those over the stage's budget.", "context", "stage")
freshness_budget_seconds = _gauge(
    "ctxpipe_freshness_budget_seconds", "Share of the objective until a stage's end.", "context", "stage"
)
watermark_age_seconds = _gauge(
    "ctxpipe_watermark_age_seconds", "Age up to which all of a source has been applied.", "context", "source"
)

# Canary: a row that is written to each source and read back through lookups.
canary_written = _counter("ctxpipe_canary_written_total", "Rows written.", "source")
canary_seen = _counter("ctxpipe_canary_seen_total", "Those read back through a lookup.", "source")
canary_seconds = _histogram("ctxpipe_canary_seconds", "From its commit until it was looked up.", FRESHNESS_S, "source")
canary_age_seconds = _gauge("ctxpipe_canary_age_seconds", "Age of the newest one a lookup shows.", "source")
canary_up = _gauge("ctxpipe_canary_up", "1 while one comes through within its time, 0 otherwise.", "source")

# Collector: consumer groups, ours and others, sampled on its own clock.
group_status = _gauge("ctxpipe_group_status", "1 for the status the group has now.", "group", "status")
group_members = _gauge("ctxpipe_group_members", "Consumers of the group.", "group")
group_rebalances = _counter("ctxpipe_group_rebalances_total", "Changes of its generation or members.", "group")
group_lag_records = _gauge("ctxpipe_group_lag_records", "Records not yet committed.", "group", "topic")
group_lag_seconds = _gauge(
    "ctxpipe_group_lag_seconds", "Age of the last record applied, where records wait; 0 without.", "group", "topic"
)
group_lag_known = _gauge("ctxpipe_group_lag_seconds_known", "1 where that age is known.", "group", "topic")
group_velocity = _gauge(
    "ctxpipe_group_lag_velocity_records_per_second", "Growth of the lag; below 0 it shrinks.", "group", "topic"
)
group_catch_up_seconds = _gauge(
    "ctxpipe_group_catch_up_seconds", "Until nothing waits, at this pace; absent unless it shrinks.", "group", "topic"
)
group_headroom = _gauge(
    "ctxpipe_group_retention_headroom_ratio", "Share of the log left before records are lost.", "group", "topic"
)
partition_status = _gauge(
    "ctxpipe_partition_status",
    "1 for the status of a partition that is not OK.",
    "group",
    "topic",
    "partition",
    "status",
)
partition_committed = _gauge(
    "ctxpipe_partition_committed_offset", "Next offset of the group.", "group", "topic", "partition"
)
partition_end = _gauge("ctxpipe_partition_end_offset", "Where the next record will be.", "topic", "partition")
partition_lag_records = _gauge(
    "ctxpipe_partition_lag_records", "Records not yet committed.", "group", "topic", "partition"
)
partition_lag_seconds = _gauge(
    "ctxpipe_partition_lag_seconds", "Age of the last record applied.", "group", "topic", "partition"
)
collector_up = _gauge("ctxpipe_collector_up", "1 where the last collection was complete.", "part")
collector_success = _gauge(
    "ctxpipe_collector_last_success_timestamp_seconds", "When it last was, as Unix time.", "part"
)
collector_seconds = _gauge("ctxpipe_collector_duration_seconds", "How long the last collection took.", "part")
collector_cpu = _gauge("ctxpipe_collector_cpu_seconds", "Processor time of the last collection.", "part")
collector_clamped = _counter("ctxpipe_collector_clamped_total", "Lags below zero that were shown as zero.", "group")

# Sources, as the servers tell: what is kept for us, and how much more can be.
source_up = _gauge("ctxpipe_source_up", "1 where the source answered the last time.", "source")
source_retained_bytes = _gauge("ctxpipe_source_retained_bytes", "Log the server keeps for us.", "source")
source_unconfirmed_bytes = _gauge("ctxpipe_source_unconfirmed_bytes", "Log we have not confirmed.", "source")
source_safe_bytes = _gauge("ctxpipe_source_safe_wal_bytes", "Log that may come before the slot is lost.", "source")
source_wal_status = _gauge("ctxpipe_source_wal_status", "1 for the slot's wal_status.", "source", "status")
source_slot_active = _gauge("ctxpipe_source_slot_active", "1 while a connector reads the slot.", "source")
source_raw_bytes = _gauge("ctxpipe_source_cdc_raw_bytes", "Segments in Cassandra's cdc_raw.", "source", "node")
source_raw_limit_bytes = _gauge(
    "ctxpipe_source_cdc_raw_limit_bytes", "Where Cassandra begins to refuse writes.", "source", "node"
)
source_generation_seconds = _gauge(
    "ctxpipe_source_generation_timestamp_seconds", "When Scylla's newest generation begins, as Unix time.", "source"
)
source_floor_seconds = _gauge(
    "ctxpipe_source_floor_seconds", "No change comes sooner: confidence window, poll interval.", "source"
)
source_headroom_seconds = _gauge(
    "ctxpipe_source_log_headroom_seconds", "Until the source drops log that we have not read.", "source"
)

# Dead letters, as the collector finds them.
dead_letters = _gauge("ctxpipe_dead_letters_waiting", "Set aside, neither redriven nor discarded.", "context")
dead_letters_bundles = _gauge("ctxpipe_dead_letters_bundles", "Bundles that are wrong because of them.", "context")
dead_letters_oldest = _gauge("ctxpipe_dead_letters_oldest_age_seconds", "Age of the oldest.", "context")
dead_letters_expiry = _gauge("ctxpipe_dead_letters_expiry_seconds", "Until the oldest expires.", "context")
dead_letters_expired = _counter("ctxpipe_dead_letters_expired_total", "Gone by expiry, never looked at.", "context")

# Guard: calls to models, whichever rung answers.
guard_answers = _counter("ctxpipe_guard_answers_total", "Calls, by who answered and why.", "task", "rung", "reason")
guard_seconds = _histogram("ctxpipe_guard_seconds", "Time of a call, all attempts.", MODEL_S, "task", "rung")
guard_late = _counter("ctxpipe_guard_late_total", "Calls that ended after their deadline.", "task")
guard_attempts = _counter(
    "ctxpipe_guard_attempts_total", "Endpoints asked, or passed over, and why.", "endpoint", "rung", "reason"
)
guard_attempt_seconds = _histogram("ctxpipe_guard_attempt_seconds", "Time of an attempt.", MODEL_S, "endpoint")
guard_in_flight = _gauge("ctxpipe_guard_in_flight_attempts", "Attempts on their way.", "endpoint")
guard_breaker = _gauge(
    "ctxpipe_guard_breaker_state",
    "0 closed, 1 half open, 2 open; of the endpoint, or of one output.",
    "endpoint",
    "part",
)
guard_opened = _counter("ctxpipe_guard_breaker_opened_total", "Times that it opened.", "endpoint", "part")
guard_invalid = _counter(
    "ctxpipe_guard_output_invalid_total", "Outputs that did not hold, and what was wrong.", "endpoint", "task", "kind"
)
guard_repaired = _counter("ctxpipe_guard_repaired_total", "Outputs that were mended.", "task", "kind")
guard_tokens = _counter("ctxpipe_guard_tokens_total", "Tokens, as endpoints count them.", "endpoint", "task", "kind")
guard_cost = _counter(
    "ctxpipe_guard_cost_total", "Cost where it is known, in the price table's currency.", "endpoint", "task"
)
guard_cost_unknown = _counter("ctxpipe_guard_cost_unknown_total", "Attempts of unknown cost.", "endpoint", "task")
guard_escalations = _counter("ctxpipe_guard_escalations_total", "Questions put to people.", "task", "outcome")
guard_escalations_lost = _counter(
    "ctxpipe_guard_escalations_lost_total", "Questions that could not be stored, after all.", "task"
)
guard_webhooks = _counter("ctxpipe_guard_webhooks_total", "Posts of questions for people.", "outcome")
guard_waiting = _gauge("ctxpipe_guard_escalations_waiting", "Questions that nobody answered yet.", "task")
guard_waiting_oldest = _gauge(
    "ctxpipe_guard_escalations_oldest_age_seconds", "Age of the oldest of them, 0 where there is none.", "task"
)
guard_routing = _gauge("ctxpipe_guard_routing_info", "1 for the endpoint that is asked first.", "task", "endpoint")
guard_routing_current = _gauge(
    "ctxpipe_guard_routing_current", "1 while a task goes as the newest routing file says, 0 otherwise.", "task"
)
guard_swaps = _counter("ctxpipe_guard_swaps_total", "Changes of the endpoint that is asked first.", "task", "kind")
guard_routing_refused = _counter("ctxpipe_guard_routing_refused_total", "Routing files that were refused.", "reason")
guard_shadow = _counter(
    "ctxpipe_guard_shadow_total", "Copies for candidates: paired, dropped, failed.", "task", "outcome"
)

# Evaluation: written to a file after a run, and told by `ctxpipe eval drift --every`.
eval_cases = _gauge(
    "ctxpipe_eval_cases", "Cases of the last run: passed, failed, accepted.", "suite", "kind", "outcome"
)
eval_flipped = _gauge(
    "ctxpipe_eval_flipped_cases", "Cases: regressed, failed and new, missing, improved.", "suite", "kind", "outcome"
)
eval_score = _gauge("ctxpipe_eval_score", "Mean score, 0 to 1.", "suite", "kind")
eval_score_blessed = _gauge("ctxpipe_eval_score_blessed", "The same when it was last blessed.", "suite", "kind")
eval_latency = _gauge("ctxpipe_eval_latency_seconds", "Virtual time that 95 of 100 cases keep.", "suite", "kind")
eval_cost = _gauge("ctxpipe_eval_case_cost", "Mean cost of a case, of those whose cost is known.", "suite", "kind")
eval_verdict = _gauge(
    "ctxpipe_eval_verdict", "Exit code: 0 pass, 1 regression, 2 inconclusive, 3 nothing decided.", "suite"
)
eval_seconds = _gauge("ctxpipe_eval_run_seconds", "Real time of the last run.", "suite")
eval_ended = _gauge("ctxpipe_eval_ended_seconds", "When it ended, in seconds since 1970.", "suite")
eval_drift_verdict = _gauge(
    "ctxpipe_eval_drift_verdict", "0 steady, 1 worse than recorded, 2 inconclusive, 3 nothing decided.", "suite"
)
eval_drift_success = _gauge(
    "ctxpipe_eval_drift_success_timestamp_seconds", "When a look at live models last decided something.", "suite"
)
eval_drift_points = _gauge("ctxpipe_eval_drift_points", "Mean of the metric, live less recorded.", "suite")
eval_drift_low = _gauge("ctxpipe_eval_drift_low_points", "Its lower bound, one-sided, 95%.", "suite")
eval_drift_moved = _gauge("ctxpipe_eval_drift_moved_cases", "Cases that fell, rose, were lost.", "suite", "outcome")
eval_drift_other_answers = _gauge(
    "ctxpipe_eval_drift_other_answers_ratio", "Share of requests that were answered in other words.", "suite"
)
eval_drift_other_models = _gauge(
    "ctxpipe_eval_drift_other_models", "Endpoints where a model of another name answers.", "suite"
)
eval_drift_cost = _gauge("ctxpipe_eval_drift_cost", "What the last look cost, where it is known.", "suite")


def expose() -> tuple[bytes, str]:
    """The body and content type of a /metrics answer."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST


def serve(port: int, host: str = "127.0.0.1") -> int:
    """Serves /metrics from a thread; returns the port, chosen by the system where `port` is 0. Raises
    EnvironmentProblem when the port is taken."""
    try:
        server, _ = start_http_server(port, host, REGISTRY)
    except OSError as error:
        reason = error.strerror or error
        raise EnvironmentProblem(
            f"can't serve metrics on {host} port {port}: {reason}. Choose another --metrics-port, or 0 for a free one."
        ) from error
    return int(server.server_port)
