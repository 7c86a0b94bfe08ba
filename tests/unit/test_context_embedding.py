"""The section `embedding` of a spec: what it may name is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.context_file import SpecError, load_context

SPEC = """\
context: plane
version: 1
root: plane
entities:
  plane: {source: nyc, table: public.planes, key: [tailnum]}
  flight: {source: nyc, table: public.flights, key: [id]}
fields: [tailnum, seats]
sections:
  flights:
    entity: flight
    kind: many
    on: {tailnum: tailnum}
    group_by: [carrier]
    aggregates: {count: count}
  last:
    entity: flight
    on: {tailnum: tailnum}
    fields: [dest]
text: {template: "{{ tailnum }}"}
"""


def load(folder: Path, embedding: str) -> list[str]:
    path = folder / "plane.yaml"
    path.write_text(SPEC + embedding)
    try:
        load_context(path)
    except SpecError as error:
        return [mistake.removeprefix(f"{path}:") for mistake in error.mistakes]
    return []


def test_fields_at_any_depth_narrow_a_search(tmp_path: Path) -> None:
    filters = "[seats, last.dest, flights.carrier, flights.count]"
    assert load(tmp_path, f"embedding: {{engine: hash, filters: {filters}}}\n") == []


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "embedding:\n  engine: hash\n  template: |\n    {{ tailnum }}\n    {{ seat }} {% if %}\n"
        "  filters: [seat, last, last.dest, last.dest]\n",
    )
    assert [mistake.split(": ")[0] for mistake in found] == ["24", "25", "25", "25"]
    assert "not a Jinja template" in found[0]
    assert "no field 'seat'; did you mean seats?" in found[1]
    assert "no field 'last'" in found[2] and "stands here twice" in found[3]
    unknown = load(tmp_path, 'embedding: {engine: hash, template: "{{ seat }}"}\n')
    assert "the bundle has no 'seat'; did you mean seats?" in unknown[0]


@pytest.mark.parametrize(
    ("embedding", "words"),
    [
        ("{engine: hash, model: x}", "hash has no model"),
        ("{engine: onnx}", "onnx needs 'model'"),
        ("{engine: openai, model: m}", "needs 'endpoint'"),
        ("{engine: hash, chunks: {tokens_max: 10, overlap_tokens: 6}}", "half of tokens_max"),
        ("{engine: word2vec}", "engine"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, embedding: str, words: str) -> None:
    assert words in "".join(load(tmp_path, f"embedding: {embedding}\n"))
