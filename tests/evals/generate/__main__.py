"""Writes what of the suite is made from data; what models say is recorded after it (`tests.evals.record`)."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tests.evals.decisions import DeskChoice, FilmAnswer, GateDecision
from tests.evals.generate import cells, degraded, departures, latency, malformed, output, replay, retrieval, trace
from tests.evals.generate.values import CaseLine

SUITE = Path(__file__).parents[1]
MADE = ("cases", "events", "bundles", "raw", "schemas")
KINDS: dict[str, Callable[[], Iterator[CaseLine]]] = {
    "replay": lambda: chain(replay.cases(), cells.cases()),
    "retrieval": retrieval.cases,
    "trace": trace.cases,
    "output": output.cases,
    "malformed": malformed.cases,
    "degraded": degraded.cases,
    "latency": latency.cases,
}


def files() -> dict[str, str]:
    """Path in the suite → text. The same in every run."""
    cases: dict[str, list[CaseLine]] = {kind: list(made()) for kind, made in KINDS.items()}
    found = {f"cases/{kind}.jsonl": _lines(lines) for kind, lines in cases.items()}
    found |= {path: _lines(lines) for path, lines in replay.files().items()}
    found |= {f"events/{name}.jsonl": _lines(log.records) for name, log in cells.logs().items()}
    found["bundles/world.jsonl"] = _lines(departures.bundle_lines())
    found["bundles/films.jsonl"] = _lines(retrieval.film_lines())
    found["bundles/fleet.jsonl"] = _lines(retrieval.fleet_lines())
    found |= {path: _json(body) for path, body in output.raw_files().items()}
    found["schemas/gate.json"] = _schema(GateDecision.model_json_schema())
    found["schemas/film.json"] = _schema(FilmAnswer.model_json_schema(), why={"type": "string"})
    found["schemas/desk.json"] = _schema(DeskChoice.model_json_schema())
    return found


def write(folder: Path) -> Counter[str]:
    """All files, and none that were made before and are not any more. Gives the number of cases by kind."""
    made = files()
    for part in MADE:
        for path in (folder / part).glob("*.json*"):
            if f"{part}/{path.name}" not in made:
                path.unlink()
    for name, text in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return Counter({kind: made[f"cases/{kind}.jsonl"].count("\n") for kind in KINDS})


def _schema(schema: dict[str, Any], **more: Any) -> str:
    """Of the flow's output: the model's answer, and who made it."""
    told = {
        "answered_by": {
            "enum": ["primary", "retry", "other", "local", "deterministic", "escalated", "rules", "nobody"]
        },
        "reason": {"type": "string"},
        "refused": {"type": "array", "items": {"type": "string"}},
        "context": {"enum": ["", "fresh", "stale", "partial", "fallback", "missing", "unavailable"]},
        **more,
    }
    schema["properties"] |= told
    schema["required"] = [*schema["required"], *told]
    if "citations" in schema["properties"]:
        schema["properties"]["citations"].pop("minItems")
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _lines(lines: Iterable[Any]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SUITE
    counts = write(folder)
    told = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    sys.stdout.write(f"{sum(counts.values())} cases in {folder}: {told}\n")


if __name__ == "__main__":
    main()
