"""A schema registry of a few lines: schemas by number over HTTP, and records as its converters write them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import TracebackType
from typing import Any

import fastavro


class RegistryServer:
    """Use as a context manager. `asked` are the numbers that somebody asked for; `refuses` is an HTTP status."""

    def __init__(self, login: str = "") -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.asked: list[int] = []
        self.authorization: list[str | None] = []
        self.refuses = 0
        self._login = login

    def __enter__(self) -> RegistryServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = int(self.path.rpartition("/")[2])
                outer.asked.append(number)
                outer.authorization.append(self.headers["Authorization"])
                known = outer.schemas.get(number)
                status = outer.refuses or (200 if known and self.path == f"/schemas/ids/{number}" else 404)
                body = json.dumps(known if status == 200 else {"error_code": 40403}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Tests are quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        login = f"{self._login}@" if self._login else ""
        self.address = f"http://{login}127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def register(self, number: int, schema: Any, **more: Any) -> None:
        self.schemas[number] = {"schema": json.dumps(schema), **more}

    def encode(self, number: int, datum: Any) -> bytes:
        """As the converters of Kafka Connect write it."""
        stream = BytesIO()
        schema = fastavro.parse_schema(json.loads(self.schemas[number]["schema"]))
        fastavro.schemaless_writer(stream, schema, datum)
        return b"\x00" + number.to_bytes(4, "big") + stream.getvalue()
