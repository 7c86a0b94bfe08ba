"""What one process carries, as it was measured: the figures behind `ctxpipe plan`, with where they come from.

`collect` reads the committed results of the benchmarks; the product carries what it found as measured.json, so that an
installed ctxpipe has it too (`python -m deploy.scaling` writes it anew). Whoever measures on other machines hands such
a file to `ctxpipe plan --figures`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.core.errors import ConfigError

FILE = Path(__file__).with_name("measured.json")
MIB = 1024 * 1024


class SearchPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Searches of one process on one core over so many vectors; bytes per vector, in memory and in mapped files."""

    vectors: int
    searches_per_s: float
    p99_ms: float
    memory_bytes: float
    mapped_bytes: float


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one process each, `redis_…` of the one core that a Redis uses. `capture_rows_per_s`: source → rows of its log
    per second; `embed_texts_per_s`: engine → texts per second on one core; `sources`: the files, with their dates."""

    environment: str
    sources: dict[str, str]
    capture_rows_per_s: dict[str, float]
    apply_events_per_s: float
    apply_writes_per_event: float
    apply_memory_bytes: int
    changed_texts_share: float
    embed_texts_per_s: dict[str, float]
    lookups_per_s: float
    lookups_without_near_per_s: float
    near_share: float
    search_dimension: int
    search_curve: list[SearchPoint]
    event_bytes: int
    row_bytes: int
    redis_state_bytes_per_row: float
    redis_overhead_bytes_per_bundle: float
    redis_event_s: float
    redis_lookup_s: float


def load_measured(path: Path = FILE) -> Measured:
    """Raises ConfigError for a file that is not there, or not like measured.json."""
    try:
        measured = msgspec.json.decode(path.read_bytes(), type=Measured)
    except OSError as error:
        raise ConfigError([f"--figures: {path} can't be read: {error.strerror}"]) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"--figures: {path} is not like {FILE.name}: {error}"]) from None
    mistakes = [f"--figures: {path}: {name} has to be above 0" for name in _not_positive(measured)]
    if mistakes:
        raise ConfigError(mistakes)
    return measured


def collect(folder: Path) -> Measured:
    """From figures.json, lookup.json, search.json, redis.json and embed.json of a folder of benchmark results."""
    files = ("figures", "lookup", "search", "redis", "embed")
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in files}
    figures, lookup, redis, embed = found["figures"], found["lookup"]["compared"], found["redis"], found["embed"]
    machine = figures["environment"]
    (answered,) = [_answered(round_) for round_ in lookup["closed_loop"]["http"][:1]]
    return Measured(
        environment=f"{machine['cpus']} cores of a {machine['machine']} machine, Python {machine['python']}",
        sources={f"tests/benchmarks/{name}.json": _date(found, name) for name in files},
        capture_rows_per_s={
            "postgres": figures["capture"]["rows_per_s"],
            "scylla": figures["capture_scylla"]["stream_rows_per_s"],
            "cassandra": figures["capture_cassandra"]["stream_rows_per_s"],
        },
        apply_events_per_s=figures["apply"]["events_per_s"],
        apply_writes_per_event=figures["apply"]["writes_per_event"],
        apply_memory_bytes=figures["apply"]["rss_mib"] * MIB,
        changed_texts_share=round(1 - figures["embeddings_saved"]["saved_share"], 4),
        embed_texts_per_s={name: rate / embed["cores"] for name, rate in embed["texts_per_s"].items()},
        lookups_per_s=lookup["capacities_per_s"]["http"],
        lookups_without_near_per_s=lookup["capacities_per_s"]["http_without_near"],
        near_share=round(answered, 3),
        search_dimension=embed["dimension"],
        search_curve=[_point(one) for one in found["search"]["curve"]],
        event_bytes=redis["event_bytes"],
        row_bytes=redis["row_json_bytes"],
        redis_state_bytes_per_row=redis["state_bytes_per_row"],
        redis_overhead_bytes_per_bundle=redis["overhead_bytes_per_bundle"],
        redis_event_s=redis["cpu_us_per_event"] / 1e6,
        redis_lookup_s=redis["cpu_us_per_lookup"] / 1e6,
    )


def encoded(measured: Measured) -> str:
    """As it stands in measured.json."""
    return json.dumps(msgspec.to_builtins(measured), indent=2) + "\n"


def _answered(one: Mapping[str, Any]) -> float:
    """Share of lookups that the near cache answered."""
    rungs = one["rungs"]
    return float(rungs.get("near", 0) / sum(rungs.values()))


def _date(found: Mapping[str, Any], name: str) -> str:
    return str(found[name].get("date") or found["figures"]["date"])


def _point(one: Mapping[str, Any]) -> SearchPoint:
    count = one["vectors"]
    return SearchPoint(
        vectors=count,
        searches_per_s=one["searches_per_s"],
        p99_ms=one["p99_ms"],
        memory_bytes=round(one["memory_mib"] * MIB / count, 1),
        mapped_bytes=round(one["mapped_mib"] * MIB / count, 1),
    )


def _not_positive(measured: Measured) -> list[str]:
    """Names of figures that the model divides by."""
    single = {
        name: getattr(measured, name)
        for name in ("apply_events_per_s", "apply_writes_per_event", "lookups_per_s", "lookups_without_near_per_s")
    }
    single |= {f"capture_rows_per_s.{name}": rate for name, rate in measured.capture_rows_per_s.items()}
    single |= {f"embed_texts_per_s.{name}": rate for name, rate in measured.embed_texts_per_s.items()}
    single |= {f"search_curve.{i}": one.searches_per_s for i, one in enumerate(measured.search_curve)}
    wrong = [name for name, value in single.items() if not 0 < value < float("inf")]
    missing = {"capture_rows_per_s": measured.capture_rows_per_s, "embed_texts_per_s": measured.embed_texts_per_s}
    return wrong + [name for name, value in (*missing.items(), ("search_curve", measured.search_curve)) if not value]
