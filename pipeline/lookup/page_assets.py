"""The page to look at bundles in a browser: files as they lie in `page/`, which hold no data and ask the API."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("page.js", "asking.js", "differences.js", "elements.js", "origins.js")
FILES = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    **{name: (name, "text/javascript; charset=utf-8") for name in _SCRIPTS},
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Scripts and styles of this server alone, none inside the page; nothing may become markup from a text."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page; `etag` changes with its bytes."""

    body: bytes
    media_type: str
    etag: str


def page_routes() -> list[Route]:
    """`/page/` and its files, and `/` that leads there. All open: whoever asks for data is asked for a credential."""
    moves = [Route(path, _to_page, methods=["GET"]) for path in ("/", "/page")]
    return [*moves, *(Route(f"/page/{name}", partial(_send, name), methods=["GET"]) for name in FILES)]


@cache
def asset(name: str) -> Asset:
    """Of FILES; read once."""
    file, media_type = FILES[name]
    body = (FOLDER / file).read_bytes()
    return Asset(body, media_type, f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"')


async def _to_page(request: Request) -> Response:
    """Relative, so that it holds behind a proxy that puts the server under a path."""
    return Response(status_code=307, headers={"location": "page/", "cache-control": "no-cache"})


async def _send(name: str, request: Request) -> Response:
    found = asset(name)
    headers = {
        # A browser keeps it and asks each time whether it still holds, so that page and script are of one release.
        "cache-control": "no-cache",
        "etag": found.etag,
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "cross-origin-opener-policy": "same-origin",
    }
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if found.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers={**headers, "content-type": found.media_type})
