"""The files of the built-in page as they are sent: open to all, of this server alone, kept and asked for again."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from pipeline.lookup.page_assets import FILES, FOLDER, asset
from tests.unit.test_access_http import World


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that asks for credentials."""
    transport = httpx.ASGITransport(app=World(tmp_path).app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as made:
        yield made


async def test_the_root_leads_to_the_page(client: httpx.AsyncClient) -> None:
    for path in ("/", "/page"):
        moved = await client.get(path, follow_redirects=True)
        assert moved.status_code == 200 and moved.url.path == "/page/" and moved.text.startswith("<!doctype html>")


@pytest.mark.parametrize("name", FILES)
async def test_a_file_is_sent_once_and_only_with_what_it_may_load(client: httpx.AsyncClient, name: str) -> None:
    first = await client.get(f"/page/{name}")
    assert first.status_code == 200 and first.content == (FOLDER / FILES[name][0]).read_bytes()
    assert first.headers["content-type"] == FILES[name][1] and first.headers["cache-control"] == "no-cache"
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy and "http" not in policy
    assert first.headers.get_list("content-security-policy") == [policy]
    assert (first.headers["x-content-type-options"], first.headers["x-frame-options"]) == ("nosniff", "DENY")
    again = await client.get(f"/page/{name}", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    changed = await client.get(f"/page/{name}", headers={"if-none-match": '"other"'})
    assert changed.status_code == 200


async def test_other_routes_keep_their_policy(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/v1/contexts", "/page/other.js"):
        assert (await client.get(path)).headers["content-security-policy"].startswith("default-src 'none'; frame-anc")


def test_every_file_of_the_folder_is_sent_and_has_a_tag_of_its_own() -> None:
    assert {file for file, _ in FILES.values()} == {path.name for path in FOLDER.iterdir()}
    assert len({asset(name).etag for name in FILES}) == len(FILES)


def test_nothing_in_them_runs_inside_the_page_or_makes_markup_of_a_text() -> None:
    page = (FOLDER / "page.html").read_text()
    assert re.findall(r"<script(?![^>]*src=)|<style|\son\w+=|style=", page) == []
    for path in FOLDER.glob("*.js"):
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", path.read_text()
        )
        assert found == [], path.name
