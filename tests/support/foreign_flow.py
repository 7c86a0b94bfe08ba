"""A flow of somebody who has nothing of ours: the standard library and HTTP. Run as a program: port, then nothing."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def post(url: str, value: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(value).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def ask(asked: dict[str, Any], url: str) -> str:
    body = {"model": "any", "messages": [{"role": "user", "content": asked["input"]["question"]}]}
    answer = post(f"{url}/chat/completions", body)
    text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def handle(asked: dict[str, Any]) -> Any:
    do = asked["input"].get("do", "")
    if do == "ends":
        print("I am going", file=sys.stderr, flush=True)
        os._exit(4)
    if do == "hangs":
        time.sleep(30)
    if do == "list":
        return []
    if do == "search":
        found = post(f"{asked['context_url']}/v1/contexts/order:search", {"text": asked["input"]["text"], "k": 2})
        return {"output": [hit["key"] for hit in found["hits"]]}
    bundle = get(f"{asked['context_url']}/v1/contexts/order/{asked['input']['order']}")
    by, text = "model", ""
    try:
        text = ask(asked, asked["model_url"])
    except (OSError, ValueError, KeyError, HTTPException):
        by, text = "other", ask(asked, asked["model_urls"]["here"])
    if do == "refund":
        post(f"{asked['tools_url']}/refund", {"order": asked["input"]["order"]})
    steps = [{"name": "noted", "asked": {"by": by}}] if do == "notes" else []
    status = bundle["status"]
    return {"output": {"answer": text, "by": by, "status": status}, "steps": steps}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            status, answer = 200, handle(asked)
        except Exception as error:  # noqa: BLE001 - as frameworks do
            status, answer = 500, {"error": repr(error)}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


if __name__ == "__main__":
    if "--no" in sys.argv:
        sys.exit("no port for me")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
