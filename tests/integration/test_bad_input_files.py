"""Mistaken files as typed: a missing or broken configuration, and specs that name what is not there. No servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cli import ctxpipe

SPEC = """context: thing
version: 1
root: thing
entities:
  thing: {source: shop, table: public.things, key: [id]}
  line: {source: shop, table: public.lines, key: [id]}
fields: [id, name]
sections:
  lines: {entity: line, kind: many, on: {thing: id}, fields: [id]}
"""
NOWHERE = "127.0.0.1:1"


def write(folder: Path, spec: str = SPEC, **sections: Any) -> Path:
    """A configuration whose servers are away, and its context."""
    source = {
        "connector": "postgres",
        "dsn": f"postgresql://u@{NOWHERE}/x",
        "tables": ["public.things", "public.lines"],
    }
    config = {
        "kafka": {"bootstrap_servers": NOWHERE},
        "redis": {"url": f"redis://{NOWHERE}/0"},
        "sources": {"shop": {**source, **sections.pop("shop", {})}},
        "contexts": ["thing.yaml"],
    }
    (folder / "thing.yaml").write_text(spec)
    path = folder / "ctxpipe.yaml"
    path.write_text(yaml.safe_dump({**config, **sections}))
    return path


@pytest.mark.parametrize(
    ("before", "after", "place", "what"),
    [
        ("table: public.lines", "table: public.liens", "thing.yaml:6: entities.line.table", "mean public.lines?"),
        ("shop, table: public.l", "shp, table: public.l", "thing.yaml:6: entities.line.source", "did you mean shop?"),
        ("root: thing", "root: thng", "thing.yaml:3: root", "no entity 'thng'; did you mean thing?"),
        ("entity: line", "entity: lien", "thing.yaml:9: sections.lines.entity", "no entity 'lien'; did you mean line?"),
        ("fields: [id]}", "sections: &a {again: {entity: line, on: {id: id}, sections: *a}}}", "thing.yaml:9: ",
         "an alias leads in a circle"),
        ("version: 1", "version: one", "thing.yaml:2: version", "must be a whole number, not 'one'"),
        ("many, on: {thing: id}", "mnay, on: [thing]", "thing.yaml:9: sections.lines.on", "must be a mapping"),
        ("[id]}\n  line", "[id], types: {n: decmal}}\n  line", "thing.yaml:5: entities.thing.types.n", "mean decimal?"),
        ("[id, name]", "[id, {name: x, value: 'os(id)'}]", "thing.yaml:7: fields.1.value", "no function 'os'"),
        ("[id, name]", "[id, {name: x, column: name, mask: hash}]", "thing.yaml:7: fields.1.mask", "mask_secret"),
        ("fields: [id]}", f"fields: {'[' * 3000}{']' * 3000}}}", "thing.yaml", "nested too deeply"),
    ],
    ids=["table", "source", "root", "entity", "cycle", "type", "mapping", "declared", "function", "secret", "deep"],
)  # fmt: skip
def test_a_mistaken_spec_is_told_with_its_place(tmp_path: Path, before: str, after: str, place: str, what: str) -> None:
    assert before in SPEC
    write(tmp_path, SPEC.replace(before, after, 1))
    done = ctxpipe("worker", folder=tmp_path)
    (line,) = [line for line in done.err.splitlines() if what in line]
    assert done.code == 2 and place in line and not done.out


def test_every_command_reads_the_spec_alike(tmp_path: Path) -> None:
    write(tmp_path, SPEC.replace("version: 1", "version: 0").replace("[id, name]", "[id, 5]"))
    commands = (["get", "thing", "1"], ["verify", "thing"], ["serve"], ["check"], ["dlq", "thing", "list"], ["worker"])
    words = {command[0]: ctxpipe(*command, folder=tmp_path) for command in commands}
    assert {done.code for done in words.values()} == {2}
    (text,) = {done.err for done in words.values()}
    assert text.count("thing.yaml:") == 2, "both mistakes at once"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "ctxpipe.yaml: no such file"),
        (b"", "the file is empty"),
        (b"kafka: {a: [", "not YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"- a", "a configuration is a mapping"),
    ],
    ids=["missing", "empty", "broken", "binary", "list"],
)
def test_a_missing_or_broken_configuration(tmp_path: Path, content: bytes | None, what: str) -> None:
    if content is not None:
        (tmp_path / "ctxpipe.yaml").write_bytes(content)
    done = ctxpipe("connect", "shop", folder=tmp_path)
    assert done.code == 2 and what in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"kafak": {}}, "kafak: unknown key; did you mean kafka?"),
        ({"redis": {"url": "redis://host:port/0"}}, "redis.url: has no host and port"),
        ({"redis": {"url": "redis://:${NOT_SET}@h/0"}}, "the environment has no NOT_SET"),
        ({"shop": {"dsn": "postgresql//u:opensesame@h/x"}}, "sources.shop.dsn: is no address"),
        ({"shop": {"connector": "mysql"}}, "'mysql' is unknown. ctxpipe has the connectors: "),
        ({"contexts": ["nothing.yaml"]}, "nothing.yaml: no such file"),
    ],
    ids=["key", "redis", "variable", "dsn", "connector", "context"],
)
def test_a_mistaken_configuration(tmp_path: Path, sections: dict[str, Any], what: str) -> None:
    write(tmp_path, **sections)
    done = ctxpipe("check", folder=tmp_path)
    assert done.code == 2 and what in done.err and len(done.told()) == 1 and "opensesame" not in done.err
