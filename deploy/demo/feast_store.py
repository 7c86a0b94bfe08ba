"""Our bundles in Feast's online store: run by the Python of an environment that has Feast, which has nothing of ours.
`python feast_store.py REPOSITORY < rows`, a JSON object per line, each with the key `flight_id`.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

KEY = "flight_id"
VIEW, SERVICE, PRECOMPUTED = "flight", "flight_service", "flight_precomputed"


def main() -> None:
    """The repository has its feature_store.yaml; here come one feature view and two services, one of them precomputed,
    which is Feast's fastest way."""
    feast, pandas = import_module("feast"), import_module("pandas")
    types = import_module("feast.types")
    repository = Path(sys.argv[1])
    rows = [json.loads(line) for line in sys.stdin]
    names = sorted({name for row in rows for name in row} - {KEY})
    kinds = {name: _kind(types, [row.get(name) for row in rows]) for name in names}
    frame = pandas.DataFrame({KEY: [row[KEY] for row in rows], **{n: _column(pandas, rows, n) for n in names}})
    frame["event_timestamp"] = datetime.now(UTC)
    source_path = repository / "flights.parquet"
    frame.head(1).to_parquet(source_path)
    entity = feast.Entity(name="flight", join_keys=[KEY], value_type=feast.ValueType.INT64)
    view = feast.FeatureView(
        name=VIEW,
        entities=[entity],
        ttl=timedelta(days=365),
        schema=[feast.Field(name=KEY, dtype=types.Int64), *(feast.Field(name=n, dtype=kinds[n]) for n in names)],
        source=feast.FileSource(path=str(source_path), timestamp_field="event_timestamp"),
    )
    store = feast.FeatureStore(repo_path=str(repository))
    services = [
        feast.FeatureService(name=SERVICE, features=[view]),
        feast.FeatureService(name=PRECOMPUTED, features=[view], precompute_online=True),
    ]
    store.apply([entity, view, *services])
    store.write_to_online_store(VIEW, df=frame)
    store.precompute_feature_service(PRECOMPUTED)
    print(json.dumps({"entities": len(rows), "values": len(names)}))


def _kind(types: Any, values: list[Any]) -> Any:
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, int) for value in present):
        return types.Int64
    if present and all(isinstance(value, int | float) for value in present):
        return types.Float64
    return types.String


def _column(pandas: Any, rows: list[dict[str, Any]], name: str) -> Any:
    values = [row.get(name) for row in rows]
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, int) for value in present):
        return pandas.array(values, dtype="Int64")
    if present and all(isinstance(value, int | float) for value in present):
        return pandas.array(values, dtype="Float64")
    return [None if value is None else str(value) for value in values]


if __name__ == "__main__":
    main()
