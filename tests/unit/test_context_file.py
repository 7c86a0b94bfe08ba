"""Context files: the good ones load, of the bad ones every mistake is named at once, with its line and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.context_file import SpecError, column_uses, load_context, read_context

GOOD = """\
context: flight
version: 1
description: one flight with what surrounds it
root: flight
entities:
  flight:
    source: nyc
    table: public.flights
    key: [id]
    types: {fare: "decimal(10,2)"}
    filter: cancelled is not true
  plane: {source: nyc, table: public.planes, key: [tailnum]}
  weather: {source: nyc, table: public.weather, key: [origin, time_hour]}
fields:
  - id
  - {name: number, column: flight}
  - {name: late, value: "dep_delay > 15"}
  - {name: passenger, mask: last4, default: none}
sections:
  weather:
    entity: weather
    on: {origin: origin, time_hour: time_hour}
    fields: [temp]
    compose: copy
  plane:
    entity: plane
    on:
      tailnum: tailnum
    fields: [model]
    compose: link
    sections:
      last_flights:
        entity: flight
        kind: many
        on: {tailnum: tailnum}
        order_by: [-time_hour, id]
        limit: 10
        fields: [id, flight]
  punctuality:
    entity: flight
    kind: many
    on: {carrier: carrier, origin: origin}
    aggregates:
      flights: count
      average: {avg: dep_delay, round: 2}
      late: {count: , where: dep_delay > 15}
      last: {latest: dest, by: time_hour}
  carriers:
    entity: flight
    kind: many
    on: {origin: origin}
    group_by: [carrier]
    order_by: [-part]
    limit: 5
    aggregates: {part: share}
text:
  template: |
    Flight {{ number }} {% if late %}late{% endif %}
    {% for f in plane.last_flights %}{{ f.id }}{% endfor %}
  token_budget: 100
  priorities: [plane, weather, plane.last_flights]
serving: {max_age_ms: 2000, default: {note: none}}
tenant: carrier
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "flight.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mistakes(folder: Path, text: str | bytes) -> list[str]:
    """Without the folder: `line: where: what`."""
    path = write(folder, text)
    with pytest.raises(SpecError) as caught:
        load_context(path)
    for mistake in caught.value.mistakes:
        assert mistake.startswith(f"{path}:")
        assert "pydantic" not in mistake
    return [mistake.removeprefix(f"{path}:").strip() for mistake in caught.value.mistakes]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} stands {GOOD.count(old)} times in the good file"
    return GOOD.replace(old, new)


def test_a_good_file_loads_with_its_short_forms(tmp_path: Path) -> None:
    spec = load_context(write(tmp_path, GOOD))
    assert [field.name for field in spec.fields] == ["id", "number", "late", "passenger"]
    assert spec.fields[0].column == "id"
    assert spec.sections["plane"].on == {"tailnum": "tailnum"}
    aggregates = spec.sections["punctuality"].aggregates
    assert [aggregates[name].function for name in aggregates] == ["count", "avg", "count", "latest"]
    assert aggregates["late"].column is None
    assert spec.serving.default == {"note": "none"}


# (text in the good file, what takes its place, line, beginning of the message, words in it)
ONE_MISTAKE = [
    ("root: flight\n", "root: fligt\n", 4, "root", "no entity 'fligt'; did you mean flight?"),
    ("context: flight", "context: Flight Data", 1, "context", "did you mean flight_data?"),
    ("version: 1", "version: true", 2, "version", "whole number, not true"),
    ("version: 1", "version: 0", 2, "version", "at least 1, not 0"),
    ("version: 1\n", "", 1, "", "'version' is missing"),
    ("description: one", "descripton: one", 3, "descripton", "did you mean description?"),
    ("public.flights", "flights", 8, "entities.flight.table", "did you mean public.flights?"),
    ("key: [id]", "key: id", 9, "entities.flight.key", "must be a list, not 'id'"),
    ("key: [id]", "key: []", 9, "entities.flight.key", "must not be empty"),
    ("key: [id]", "key: [id, id]", 9, "entities.flight.key.1", "stands here twice"),
    ("decimal(10,2)", "decimal", 0, "", ""),
    ("decimal(10,2)", "decimal(10)", 10, "entities.flight.types.fare", "write decimal(precision,scale)"),
    ("decimal(10,2)", "timestmp", 10, "entities.flight.types.fare", "did you mean timestamp?"),
    ("cancelled is not true", "cancelled = true", 11, "entities.flight.filter", "write =="),
    ("dep_delay > 15\"}", "dep_delay >\"}", 17, "fields.2.value", "at character 11"),
    ("- id\n", "- number\n", 16, "fields.1", "the name 'number' stands here twice"),
    ("mask: last4", "maks: last4", 18, "fields.3.maks", "did you mean mask?"),
    ("mask: last4", "mask: last", 18, "fields.3.mask", "did you mean last4?"),
    ("column: flight}", "column: flight, value: x}", 16, "fields.1", "either 'column' or 'value'"),
    ("name: passenger", "name: plane", 18, "fields.3", "name of a section"),
    ("entity: plane\n", "entity: plain\n", 26, "sections.plane.entity", "did you mean plane?"),
    ("fields: [temp]", "fields: [temp]\n    limit: 2", 24, "sections.weather.limit", "kind: many"),
    ("fields: [temp]", "fields: [temp]\n    order_by: [x]", 24, "sections.weather.order_by", "one row at most"),
    ("    fields: [temp]\n", "", 20, "sections.weather", "gives nothing"),
    ("on: {origin: origin, time_hour: time_hour}", "on: {}", 22, "sections.weather.on", "must not be empty"),
    ("on: {origin: origin, time_hour: time_hour}", "on: [a]", 22, "sections.weather.on", "must be a mapping"),
    ("compose: copy", "compose: cpy", 24, "sections.weather.compose", "did you mean copy?"),
    ("limit: 10\n", "limit: 10\n        compose: link\n", 38, "sections.plane.sections", "write copy"),
    ("limit: 10\n", "limit: ten\n", 37, "sections.plane.sections.last_flights.limit", "whole number, not 'ten'"),
    ("[-time_hour, id]", "[-time_hour, time_hour]", 36, "sections.plane.sections.last_flights.order_by.1", "twice"),
    ("avg: dep_delay,", "avrage: dep_delay,", 45, "sections.punctuality.aggregates.average", "did you mean avg?"),
    (", by: time_hour}", "}", 47, "sections.punctuality.aggregates.last", "latest needs 'by'"),
    ("flights: count", "flights: sum", 44, "sections.punctuality.aggregates.flights", "needs a column"),
    ("flights: count", "flights: share", 44, "sections.punctuality.aggregates.flights", "needs group_by"),
    ("flights: count", "flights: {count: x, by: y}", 44, "sections.punctuality.aggregates.flights.by", "latest"),
    ("    aggregates:\n", "    fields: [id]\n    aggregates:\n", 43, "sections.punctuality.fields", "of their own"),
    ("    aggregates:\n", "    limit: 1\n    aggregates:\n", 43, "sections.punctuality.limit", "no meaning"),
    ("order_by: [-part]", "order_by: [-prt]", 53, "sections.carriers.order_by.0", "did you mean part?"),
    ("    aggregates: {part: share}", "    fields: [id]", 52, "sections.carriers.group_by", "needs aggregates"),
    ("{part: share}", "{part: share, carrier: count}", 52, "sections.carriers.group_by.0", "rename"),
    ("{% for f", "{% fo f", 59, "text.template", "not a Jinja template"),
    ("{{ number }}", "{{ numbr }}", 57, "text.template", "no 'numbr'; did you mean number?"),
    ("{{ number }}", "{{ number | uper }}", 58, "text.template", "uper"),
    ("[plane, weather,", "[plan, weather,", 61, "text.priorities.0", "did you mean plane?"),
    ("max_age_ms: 2000", "max_age: 2000", 62, "serving.max_age", "did you mean max_age_ms?"),
    ("tenant: carrier", "tenant: [carrier]", 63, "tenant", "must be text, not a list"),
    ("version: 1", "version: 1\nversion: 2", 3, "version", "written twice, first on line 2"),
    ("version: 1", "version: !!python/name:os.system 1", 2, "version", "not allowed"),
    ("version: 1", "version: 1: 2", 2, "", "not YAML"),
    ("mask: last4", "mask: *nowhere", 18, "", "undefined alias"),
    ("version: 1", "version: 1000000000", 2, "version", "at most 999999999"),
    ("root: flight\n", "", 1, "", "'root' is missing"),
    ("public.flights", "shop.public.flights", 8, "entities.flight.table", "did you mean public.flights?"),
    ("decimal(10,2)", "bigint", 10, "entities.flight.types.fare", "did you mean integer?"),
    ("decimal(10,2)", "varchar(20)", 10, "entities.flight.types.fare", "did you mean text?"),
    ("mask: last4", "column: , mask: last4", 18, "fields.3", "without anything"),
    ("value: \"dep_delay > 15\"", "value:", 17, "fields.2", "without anything"),
    ("default: none", "default: [1e999]", 18, "fields.3.default", "too large for a float"),
    ("default: none", "default: \"\\ud800\"", 18, "fields.3.default", "surrogate"),
    ("default: none", "default: " + "[" * 130 + "]" * 130, 18, "fields.3.default", "levels deep"),
    ("{note: none}", "{note: -1e999}", 62, "serving.default", "too large for a float"),
    ("max_age_ms: 2000", "time_to_live_s: 315360001", 62, "serving.time_to_live_s", "at most 315360000"),
    ("[-time_hour, id]", "[time_hour DESC]", 36, "sections.plane.sections.last_flights.order_by.0", "mean -time_hour?"),
    ("flights: count", "flights: {count: x, sum: y}", 44, "sections.punctuality.aggregates.flights", "two aggregates"),
    ("{part: share}", f"{{{', '.join(f'a{n}: count' for n in range(101))}, part: share}}", 55,
     "sections.carriers.aggregates", "at most 100 can stand here"),
    ("    kind: many\n    on: {origin: origin}", "    kind: mny\n    on: {origin: origin}", 50,
     "sections.carriers.kind", "did you mean many?"),
    ("group_by: [carrier]", "group_by: carrier", 52, "sections.carriers.group_by", "must be a list"),
    ("{{ number }}", "{% include 'other' %}", 57, "text.template", "nothing to include"),
    ("{{ number }}", "{{ [number] | random }}", 58, "text.template", "No filter named 'random'"),
    ("{{ number }}", "{{ lipsum() }}", 57, "text.template", "no 'lipsum'"),
    ("value: \"dep_delay > 15\"", "value: from > 15", 17, "fields.2.value", "column(\"from\")"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "where", "words"), ONE_MISTAKE)
def test_one_mistake_gives_one_sentence(tmp_path: Path, old: str, new: str, line: int, where: str, words: str) -> None:
    text = changed(old, new)
    if line == 0:
        load_context(write(tmp_path, text))
        return
    found = mistakes(tmp_path, text)
    assert len(found) == 1, found
    assert found[0].startswith(f"{line}: {where}")
    assert words in found[0]


def test_all_mistakes_come_at_once_shape_and_sense_together(tmp_path: Path) -> None:
    text = GOOD
    for old, new in [
        ("context: flight", "context: Flight"),
        ("root: flight\n", "root: fligt\n"),
        ("cancelled is not true", "a = 1"),
        ("mask: last4", "maks: last4"),
        ("entity: plane\n", "entity: plain\n"),
        ("limit: 10\n", "limit: ten\n"),
        ("avg: dep_delay,", "avrage: dep_delay,"),
        ("order_by: [-part]", "order_by: [-prt]"),
        ("max_age_ms: 2000", "max_age_ms: 0"),
    ]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    found = mistakes(tmp_path, text)
    lines = [int(sentence.split(":")[0]) for sentence in found]
    assert lines == [1, 4, 11, 18, 26, 37, 45, 53, 62], "\n".join(found)


@pytest.mark.parametrize("lost", ["context: flight\n", "version: 1\n", "root: flight\n", "    key: [id]\n"])
def test_what_is_missing_hides_no_other_mistake(tmp_path: Path, lost: str) -> None:
    text = changed(lost, "").replace("cancelled is not true", "a = 1").replace("order_by: [-part]", "order_by: [-prt]")
    found = mistakes(tmp_path, text)
    assert len(found) == 3, found
    assert f"{lost.split(':')[0].strip()!r} is missing" in found[0]
    assert "entities.flight.filter" in found[1]
    assert "sections.carriers.order_by" in found[2]


def test_a_part_of_another_shape_hides_none_of_its_neighbours(tmp_path: Path) -> None:
    text = (
        changed("key: [id]", "key: id")
        .replace("decimal(10,2)", "timestmp")
        .replace("    kind: many\n    on: {o", "    kind: mny\n    on: {o")
    )
    text = text.replace("on: {origin: origin, time_hour: time_hour}", "on: []").replace("compose: copy", "limit: 1")
    places = [sentence.split(": ")[1] for sentence in mistakes(tmp_path, text)]
    assert places == [
        "entities.flight.key", "entities.flight.types.fare", "sections.weather.on", "sections.weather.limit",
        "sections.carriers.kind",
    ]  # fmt: skip


def test_two_entities_of_one_table_must_agree(tmp_path: Path) -> None:
    other = "  again: {source: nyc, table: public.flights, key: [number], types: {fare: text}}\n  plane: {source"
    found = mistakes(tmp_path, changed("  plane: {source", other))
    assert [sentence.split(": ")[1] for sentence in found] == ["entities.again.key", "entities.again.types.fare"]


def test_two_tables_cannot_share_a_topic(tmp_path: Path) -> None:
    text = changed("  plane: {source", "  odd: {source: nyc, table: public.flight$, key: [id]}\n  plane: {source")
    text = text.replace("public.planes", "public.flight_")
    (found,) = mistakes(tmp_path, text)
    assert found.startswith("13: entities.plane.table: public.flight_ and public.flight$ come on one topic")


def test_sections_go_six_deep(tmp_path: Path) -> None:
    def nested(depth: int) -> str:
        lines = ["context: deep", "version: 1", "root: a", "entities: {a: {source: s, table: p.a, key: [id]}}"]
        lines += ["fields: [id]"]
        for level in range(depth):
            indent = "  " * 2 * level
            lines += [f"{indent}sections:", f"{indent}  s:"]
            lines += [f"{indent}    {line}" for line in ("entity: a", "on: {id: parent}", "fields: [id]")]
        return "\n".join(lines)

    load_context(write(tmp_path, nested(6)))
    assert "at most 6 deep" in mistakes(tmp_path, nested(7))[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"# only a remark\n", "empty"),
        (b"- a\n- b\n", "a context is a mapping"),
        (b"just text", "a context is a mapping"),
        (b"context: a\n---\ncontext: b\n", "two documents"),
        (b"context: \xff\xfe", "not UTF-8"),
        (b"context: a\x00b", "not YAML"),
        (b"\tcontext: a", "not YAML"),
        (b"a: &a [*a]", "circle"),
        (b"a: &a {b: *a}", "circle"),
        (b"[" * 5000, "nested too deeply"),
        (b"a: {[b]: c}", "a key must be a word"),
        (b"x" * 1_000_001, "larger than"),
        (b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%b]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 10)) for c in range(97, 103)
        ), "aliases multiply"),
    ],
)  # fmt: skip
def test_what_is_no_context_file(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in mistakes(tmp_path, content)[0]


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(SpecError, match=r"no such file; did you mean .*flight.yaml"):
        load_context(tmp_path / "fligth.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        load_context(tmp_path)


def test_words_that_yaml_1_1_reads_as_something_else_stay_words(tmp_path: Path) -> None:
    text = changed("{note: none}", "{on: off, yes: no, at: 12:30, day: 2026-01-02, code: 010}")
    assert load_context(write(tmp_path, text)).serving.default == {
        "on": "off", "yes": "no", "at": "12:30", "day": "2026-01-02", "code": "010",
    }  # fmt: skip


def test_an_alias_saves_writing_the_same_part_twice(tmp_path: Path) -> None:
    text = changed("fields: [model]", "fields: &short [model]").replace("fields: [temp]", "fields: [temp]")
    text = text.replace("        fields: [id, flight]", "        fields: *short")
    spec = load_context(write(tmp_path, text))
    assert [f.name for f in spec.sections["plane"].sections["last_flights"].fields] == ["model"]


def test_column_uses_names_every_use_and_its_line(tmp_path: Path) -> None:
    file = read_context(write(tmp_path, GOOD))
    uses = column_uses(file.spec, file.document.place)
    assert sorted(uses["plane"]) == ["model", "tailnum"]
    assert uses["plane"]["tailnum"] == [
        f"{file.document.path}:12: entities.plane.key.0",
        f"{file.document.path}:28: sections.plane.on.tailnum",
        f"{file.document.path}:35: sections.plane.sections.last_flights.on.tailnum",
    ]
    flight = column_uses(file.spec)["flight"]
    assert sorted(flight) == [
        "cancelled", "carrier", "dep_delay", "dest", "fare", "flight", "id", "origin", "passenger", "tailnum",
        "time_hour",
    ]  # fmt: skip
    assert flight["dep_delay"] == [
        "fields.2.value", "sections.punctuality.aggregates.average", "sections.punctuality.aggregates.late.where",
    ]  # fmt: skip
    assert "tenant" in flight["carrier"]
