"""`ctxpipe connector` on the command line: the list, and what is refused of a new package."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.scaffold import write_package
from tests.support.cli import ctxpipe


def test_the_list_names_abilities_and_origin(tmp_path: Path) -> None:
    done = ctxpipe("connector", "list", "--json", folder=tmp_path)
    (found,) = done.lines()
    by_name = {one["name"]: one for one in found["connectors"]}
    assert done.code == 0 and by_name["postgres"]["runs"] and by_name["postgres"]["problem"] == ""
    assert {"topics", "check", "lag", "reset"} <= set(by_name["postgres"]["abilities"])
    assert by_name["postgres"]["origin"].startswith("ctxpipe ") and by_name["postgres"]["summary"]
    told = ctxpipe("connector", "list", folder=tmp_path)
    assert told.code == 0 and all(name in told.out for name in by_name)


def test_a_connector_that_cannot_be_used_is_listed_with_its_reason(tmp_path: Path) -> None:
    info = tmp_path / "wiki-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wiki\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ctxpipe.connectors]\npages = no_such_module:PLUGIN\n")
    done = ctxpipe("connector", "list", "--json", folder=tmp_path, PYTHONPATH=str(tmp_path))
    broken = next(one for one in done.lines()[0]["connectors"] if one["name"] == "pages")
    assert done.code == 1 and not broken["runs"] and broken["origin"] == "wiki 1.0"
    assert "No module named 'no_such_module'" in broken["problem"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("Wiki-Pages", "is no name for a connector"),
        ("class", "is no name for a connector"),
        ("../wiki", "is no name for a connector"),
        ("postgres", "is installed already"),
        ("w" * 41, "is no name for a connector"),
    ],
)
def test_a_name_that_cannot_be_taken(tmp_path: Path, name: str, what: str) -> None:
    done = ctxpipe("connector", "new", name, "--directory", "made", folder=tmp_path)
    assert done.code == 2 and len(done.told()) == 1 and what in done.err and not (tmp_path / "made").exists()


def test_a_directory_that_is_taken_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "mine.txt").write_text("mine")
    done = ctxpipe("connector", "new", "wiki", folder=tmp_path)
    assert done.code == 2 and len(done.told()) == 1 and "exists already" in done.err
    assert [path.name for path in (tmp_path / "wiki").iterdir()] == ["mine.txt"]


def test_the_name_is_everywhere_and_the_placeholder_nowhere(tmp_path: Path) -> None:
    written = write_package("wiki_pages", tmp_path)
    assert {str(path) for path in written} >= {"pyproject.toml", "README.md", "tests/test_wiki_pages.py"}
    text = "".join((tmp_path / path).read_text() for path in written)
    assert "acme" not in text.lower() and "class WikiPagesSource:" in text and "wiki_pages = " in text
