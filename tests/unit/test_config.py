"""ctxpipe.yaml: variables, secrets, the local stack's addresses, and all mistakes at once with their lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core.config import Config, load, load_contexts, mask_addresses
from pipeline.core.errors import ConfigError

GOOD = """\
kafka: {bootstrap_servers: "127.0.0.1:9092", partitions: 4}
redis:
  url: "redis://:${REDIS_PASSWORD}@127.0.0.1:6379/0"
sources:
  nyc:
    connector: postgres
    dsn: "postgresql://me:${PG_PASSWORD:-none}@host/db"
    tables: [public.flights]
contexts: ["contexts/*.yaml"]
serve: {port: 8081}
"""
CONTEXT = """\
context: flight
version: 1
root: flight
entities:
  flight: {source: nyc, table: public.flights, key: [id]}
fields:
  - id
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_PASSWORD_FILE", "PG_PASSWORD", "PG_PASSWORD_FILE", "NOWHERE", "NOWHERE_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_PASSWORD", "swordfish")
    (tmp_path / "contexts").mkdir()
    (tmp_path / "contexts" / "flight.yaml").write_text(CONTEXT)
    return tmp_path


def loaded(folder: Path, text: str = GOOD) -> Config:
    path = folder / "ctxpipe.yaml"
    path.write_text(text)
    return load(path)


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text)
    assert caught.value.exit_code == 2
    return [mistake.removeprefix(f"{folder / 'ctxpipe.yaml'}:").strip() for mistake in caught.value.mistakes]


def test_a_good_file(folder: Path) -> None:
    config = loaded(folder)
    assert config.kafka.bootstrap_servers == "127.0.0.1:9092"
    assert (config.kafka.partitions, config.kafka.replication_factor) == (4, 1)
    assert config.redis.url == "redis://:swordfish@127.0.0.1:6379/0"
    assert (config.redis.cluster, config.redis.prefix) == (False, "ctxpipe")
    assert config.sources["nyc"]["dsn"] == "postgresql://me:none@host/db"
    assert (config.serve.host, config.serve.port) == ("127.0.0.1", 8081)
    assert list(load_contexts(config)) == ["flight"]


def test_no_secret_is_ever_shown(folder: Path) -> None:
    config = loaded(folder, GOOD.replace("${PG_PASSWORD:-none}", "hunter2") + "mask_secret: pepper\n")
    shown = f"{config!r} {config} {json.dumps(config.shown())} {config.redis!r}"
    for secret in ("swordfish", "hunter2", "pepper"):
        assert secret not in shown
    assert config.shown()["sources"]["nyc"]["dsn"] == "postgresql://me:**********@host/db"
    assert config.mask_secret is not None
    assert config.mask_secret.get_secret_value() == "pepper"


@pytest.mark.parametrize(
    "line",
    [
        "mask_secret: 5550123",
        "mask_secret: [5550123]",
        "sources: {a: {connector: postgres, dsn: 'postgresql://h/db?user=u&password=5550123&sslmode=require'}}",
        "sources: {a: {connector: postgres, dsn: \"host=h password = '555 \\\\' 5550123'\"}}",
        "sources: {a: {connector: postgres, api_key: '5550123', passphrase: '5550123', pwd: '5550123'}}",
        "redis: {url: 'redis://u:123/5550123@h:1/0'}",
    ],
)
def test_a_secret_is_shown_neither_in_mistakes_nor_as_part_of_a_value(folder: Path, line: str) -> None:
    text = 'kafka: {bootstrap_servers: "h:1"}\n' + ("" if line.startswith("redis") else "redis: {url: 'redis://h'}\n")
    try:
        shown = json.dumps(loaded(folder, f"{text}{line}\n").shown())
    except ConfigError as error:
        shown = str(error)
    assert "5550123" not in shown


def test_a_variable_may_come_from_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "password").write_text("from a file\n")
    monkeypatch.setenv("PG_PASSWORD_FILE", str(folder / "password"))
    assert loaded(folder).sources["nyc"]["dsn"] == "postgresql://me:from a file@host/db"
    monkeypatch.setenv("PG_PASSWORD", "direct")
    assert loaded(folder).sources["nyc"]["dsn"] == "postgresql://me:direct@host/db"


def test_a_dollar_sign_is_written_twice(folder: Path) -> None:
    config = loaded(folder, GOOD.replace("${PG_PASSWORD:-none}", "a$$b$c$${d}"))
    assert config.sources["nyc"]["dsn"] == "postgresql://me:a$b$c${d}@host/db"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("${PG_PASSWORD:-none}", "${NOWHERE}", "7: sources.nyc.dsn: the environment has no NOWHERE, nor NOWHERE_FILE"),
        ("${PG_PASSWORD:-none}", "${}", "7: sources.nyc.dsn: ${} is no variable"),
        ("partitions: 4", "partitons: 4", "1: kafka.partitons: unknown key; did you mean partitions?"),
        ("partitions: 4", "partitions: none", "1: kafka.partitions: must be a whole number, not 'none'"),
        ("partitions: 4", "partitions: 0", "1: kafka.partitions: must be at least 1, not 0"),
        ("127.0.0.1:9092", "127.0.0.1", "1: kafka.bootstrap_servers: '127.0.0.1' is not host:port"),
        ("redis://:", "http://:", "3: redis.url: is no Redis address"),
        ("connector: postgres\n", "conector: postgres\n", "5: sources.nyc: 'connector' is missing"),
        ("serve: {port: 8081}", "serve: {port: 808100}", "10: serve.port: must be at most 65535, not 808100"),
        ("serve: {port", "server: {port", "10: server: unknown key; did you mean serve?"),
        ("contexts: [", "contexts: [5, ", "9: contexts.0: must be text, not 5"),
        ("sources:\n  nyc:", "sources:\n  Nyc:", "5: sources.Nyc"),
        ("kafka:", "kafka: {}\nkafka:", "2: kafka: written twice, first on line 1"),
        ("kafka:", "path: x\nkafka:", "1: path: unknown key"),
    ],
)
def test_one_mistake_gives_one_sentence(folder: Path, old: str, new: str, expected: str) -> None:
    assert GOOD.count(old) == 1
    found = mistakes(folder, GOOD.replace(old, new))
    assert len(found) == 1, found
    assert found[0].startswith(expected)


def test_all_mistakes_at_once(folder: Path) -> None:
    text = GOOD.replace("partitions: 4", "partitions: 0").replace("${PG_PASSWORD:-none}", "${NOWHERE}")
    found = mistakes(folder, text.replace("serve:", "serv:"))
    assert [sentence.split(":")[0] for sentence in found] == ["1", "7", "10"]


def test_without_servers_it_says_how_to_get_them(folder: Path) -> None:
    found = mistakes(folder, "contexts: []\n")
    assert len(found) == 2
    assert all("ctxpipe up" in sentence for sentence in found)


def write_state(folder: Path, up: bool = True, text: str | None = None) -> None:
    state = {
        "version": 1,
        "up": up,
        "servers": {"kafka": {"address": "127.0.0.1:1"}, "redis": {"address": "redis://l:2"}},
    }
    (folder / ".ctxpipe" / "local").mkdir(parents=True)
    (folder / ".ctxpipe" / "local" / "state.json").write_text(json.dumps(state) if text is None else text)


def test_the_local_stack_stands_in_for_what_is_left_out(folder: Path) -> None:
    write_state(folder)
    config = loaded(folder, "kafka: {partitions: 2}\ncontexts: []\n")
    assert (config.kafka.bootstrap_servers, config.kafka.partitions) == ("127.0.0.1:1", 2)
    assert config.redis.url == "redis://l:2"
    assert loaded(folder).kafka.bootstrap_servers == "127.0.0.1:9092"


def test_the_local_stack_is_found_beside_the_file_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert loaded(folder, "contexts: []\n").redis.url == "redis://l:2"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"up": true}', '{"up": true, "servers": 5}', '{"up": "true"}'])
def test_a_damaged_state_file_is_as_none(folder: Path, text: str) -> None:
    write_state(folder, text=text)
    assert len(mistakes(folder, "contexts: []\n")) == 2


def test_a_stack_that_is_down_does_not_stand_in(folder: Path) -> None:
    write_state(folder, up=False)
    assert len(mistakes(folder, "contexts: []\n")) == 2


def test_a_missing_file_says_what_to_do(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; give another with --config or CTXPIPE_CONFIG"):
        load(folder / "ctxpipe.yaml")


@pytest.mark.parametrize("text", ["", "- a", "text"])
def test_a_file_of_another_kind(folder: Path, text: str) -> None:
    assert len(mistakes(folder, text)) == 1


def context_mistakes(folder: Path, config_text: str = GOOD) -> list[str]:
    config = loaded(folder, config_text)
    with pytest.raises(ConfigError) as caught:
        load_contexts(config)
    return [mistake.removeprefix(f"{folder}/") for mistake in caught.value.mistakes]


def test_mistakes_of_all_contexts_come_at_once(folder: Path) -> None:
    (folder / "contexts" / "airport.yaml").write_text(CONTEXT.replace("root: flight", "root: fligt"))
    (folder / "contexts" / "flight.yaml").write_text(CONTEXT.replace("- id", "- ID"))
    (folder / "contexts" / "notes.txt").write_text("no context")
    found = context_mistakes(folder)
    assert [sentence.split(": ")[0] for sentence in found] == ["contexts/airport.yaml:3", "contexts/flight.yaml:7"]


def test_a_context_is_declared_once(folder: Path) -> None:
    (folder / "contexts" / "again.yaml").write_text(CONTEXT)
    (found,) = context_mistakes(folder)
    assert found.startswith("contexts/flight.yaml:1: context 'flight' is declared in")
    assert "again.yaml:1 already" in found


def test_a_file_that_two_patterns_name_is_read_once(folder: Path) -> None:
    config = loaded(folder, GOOD.replace('["contexts/*.yaml"]', '["contexts/flight.yaml", "contexts/*.yaml"]'))
    assert list(load_contexts(config)) == ["flight"]


def test_patterns_and_names_that_find_nothing(folder: Path) -> None:
    text = GOOD.replace('["contexts/*.yaml"]', '["nowhere/*.yaml", "contexts/fligth.yaml", "a**b"]')
    found = context_mistakes(folder, text)
    assert len(found) == 3
    assert "no file matches 'nowhere/*.yaml'" in found[0]
    assert "'a**b' is no file pattern" in found[1]
    assert "no such file; did you mean" in found[2]


def test_sources_and_tables_of_contexts_must_be_configured(folder: Path) -> None:
    (folder / "contexts" / "flight.yaml").write_text(CONTEXT.replace("source: nyc", "source: nycc"))
    (found,) = context_mistakes(folder)
    assert "has no source 'nycc'; did you mean nyc?" in found
    (folder / "contexts" / "flight.yaml").write_text(CONTEXT.replace("public.flights", "public.planes"))
    (found,) = context_mistakes(folder)
    assert "contexts/flight.yaml:5" in found
    assert "does not capture public.planes" in found


def test_hashes_need_a_secret(folder: Path) -> None:
    (folder / "contexts" / "flight.yaml").write_text(CONTEXT + "  - {name: email, mask: hash}\n")
    (found,) = context_mistakes(folder)
    assert found.startswith("contexts/flight.yaml:8: fields.1.mask: hash needs a secret")
    load_contexts(loaded(folder, GOOD + "mask_secret: pepper\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:**********@h/d"),
        (
            "can't reach redis://:p:q@h:1 and redis://:r@h",
            "can't reach redis://:**********@h:1 and redis://:**********@h",
        ),
        ("http://h:80/a@b", "http://h:80/a@b"),
        ("host=h password=p user=u", "host=h password=********** user=u"),
        ("postgresql://h/d?sslpassword=p&x=1", "postgresql://h/d?sslpassword=**********&x=1"),
        ("redis://h:1/0", "redis://h:1/0"),
    ],
)
def test_passwords_in_addresses_are_masked(text: str, expected: str) -> None:
    assert mask_addresses(text) == expected
