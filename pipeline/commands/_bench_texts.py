"""Real texts for `ctxpipe bench embed`: planes and airports of the demo's data, as a spec would write them out."""

from __future__ import annotations

import random
from typing import Any

SEED = 20130101
PLANE_TEMPLATE = (
    "Plane {{ tailnum }}: {{ manufacturer }} {{ model }}{% if year %}, built in {{ year }}{% endif %}, {{ type }} with "
    "{{ engines }} engines ({{ engine }}) and {{ seats }} seats."
)
AIRPORT_TEMPLATE = (
    "Airport {{ faa }}: {{ name }}, latitude {{ lat }}, longitude {{ lon }}, {{ alt }} feet high, zone {{ tzone }}."
)


def sample_texts(count: int) -> list[str]:
    """Different ones as far as there are: 4,780. The same for the same count."""
    texts = sorted({_rendered(kind, row) for kind, row in _rows()})
    chance = random.Random(SEED)
    chance.shuffle(texts)
    return [texts[number % len(texts)] for number in range(count)]


def _rows() -> list[tuple[str, dict[str, Any]]]:
    from deploy.demo.data import AIRPORTS, PLANES, read_rows

    return [
        (kind, dict(zip([name for name, _ in table.columns], values, strict=True)))
        for kind, table in (("plane", PLANES), ("airport", AIRPORTS))
        for values in read_rows(table)
    ]


def _rendered(kind: str, row: dict[str, Any]) -> str:
    from pipeline.text import render_template

    return render_template(PLANE_TEMPLATE if kind == "plane" else AIRPORT_TEMPLATE, row)
