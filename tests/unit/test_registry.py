"""Connectors as plugins: found by entry point, their sections parsed, every mistake told at once, no secret in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from connectors import registry
from connectors.registry import Configured, Plugin, SourceConfig, configure, configure_one, find, installed
from connectors.source import Batch, Position
from pipeline.core.errors import ConfigError

MakePlugin = Callable[[str, str, str], None]


@pytest.fixture
def bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePlugin]:
    """bring(name, module, code): a distribution of its own whose entry point `name` is module:PLUGIN."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, module: str, code: str) -> None:
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {module}:PLUGIN\n")
        installed.cache_clear()
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield make
    installed.cache_clear()


WORKING = """
from pydantic import SecretStr
from connectors.registry import Plugin, SourceConfig

class Config(SourceConfig):
    token: SecretStr
    pages_max: int = 3

class Source:
    def __init__(self, config): ...
    async def open(self, position): ...
    async def read(self): ...
    async def acknowledge(self, position): ...
    async def close(self): ...
    def table_topics(self): return ["s.a.b"]
    def other_topics(self): return []
    async def lag(self): ...

PLUGIN = Plugin("pages", "pages of a wiki", Config, Source)
"""


def test_a_plugin_of_another_distribution_is_found_with_its_abilities(bring: MakePlugin) -> None:
    bring("pages", "wiki_pages", WORKING)
    entry = next(one for one in installed() if one.name == "pages")
    assert entry.origin == "wiki_pages 1.2" and entry.problem == ""
    assert find("pages").abilities() == ["topics", "lag"]
    assert find("postgres").abilities() == [*registry.ABILITIES]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("PLUGIN = 3", "is no connectors.registry.Plugin"),
        (WORKING.replace('Plugin("pages"', 'Plugin("sites"'), "its entry point says pages, it calls itself sites"),
        (WORKING.replace("async def read(self): ...", ""), "Source has no read"),
        (WORKING.replace("def table_topics", "def tables"), "does not tell its topics"),
        (
            WORKING.replace("class Config(SourceConfig)", "class Config(__import__('pydantic').BaseModel)"),
            "unknown keys",
        ),
    ],
)
def test_a_broken_plugin_says_what_is_wrong_and_leaves_the_others_alone(
    bring: MakePlugin, code: str, problem: str
) -> None:
    bring("pages", "wiki_pages", code)
    with pytest.raises(ConfigError) as told:
        find("pages")
    assert problem in str(told.value) and "wiki_pages 1.2" in str(told.value)
    assert find("postgres").name == "postgres"


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"'postgers' is unknown; did you mean postgres\?"):
        find("postgers")


class Limits(BaseModel):
    model_config = {"extra": "forbid"}

    rows_max: int = 1


class Config(SourceConfig):
    token: SecretStr
    limits: Limits = Limits()


class Silent:
    """A source that is never run."""

    def __init__(self, config: Config) -> None: ...
    async def open(self, position: Position | None) -> None: ...
    async def read(self) -> Batch:
        return Batch([], None)

    async def acknowledge(self, position: Position) -> None: ...
    async def close(self) -> None: ...


PLUGIN = Plugin("silent", "", Config, Silent)


def test_every_mistake_of_every_source_is_told_at_once() -> None:
    sections = {
        "shop": {"connector": "postgres", "tabels": ["a.b"], "heartbeat_interval_s": "often"},
        "wiki": {"connector": "postgers"},
        "none": {},
    }
    with pytest.raises(ConfigError) as told:
        configure(sections)
    mistakes = told.value.mistakes
    assert "sources.shop.dsn: is missing: postgresql://user:password@host:port/database" in mistakes
    assert any(one.startswith("sources.shop.tabels: unknown key; did you mean tables?") for one in mistakes)
    assert any(one.startswith("sources.shop.heartbeat_interval_s: ") for one in mistakes)
    assert any(one.startswith("sources.wiki.connector: 'postgers' is unknown; did you mean") for one in mistakes)
    assert any(one.startswith("sources.none.connector: ") for one in mistakes)


def test_a_mistake_inside_a_part_names_the_keys_of_that_part() -> None:
    with pytest.raises(ConfigError) as told:
        configure_one(PLUGIN, "quiet", {"token": "t", "limits": {"row_max": 1}})
    assert "sources.quiet.limits.row_max: unknown key; did you mean rows_max?" in str(told.value)


def test_no_value_of_a_wrong_section_is_repeated() -> None:
    with pytest.raises(ConfigError) as told:
        configure_one(PLUGIN, "quiet", {"token": {"opensesame": "opensesame"}, "limits": "opensesame"})
    assert "opensesame" not in str(told.value) and told.value.__cause__ is None and len(told.value.mistakes) == 2


def test_topics_that_others_fill_are_nothing_to_run() -> None:
    configured = Configured(Plugin("others", "", Config, None), Config(name="theirs", token=SecretStr("t")))
    assert configured.topics() == [] and configured.plugin.abilities() == []
    with pytest.raises(ConfigError, match=r"sources.theirs: its topics are filled by others"):
        configured.source()
