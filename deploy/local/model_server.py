"""A local quantised model behind an OpenAI-compatible API: llama.cpp's server, in a Python environment of its own.

`python -m deploy.local.model_server` builds that environment: llama-cpp-python comes as source only, so it takes gcc,
cmake and some minutes, once for all checkouts. Any other server of that kind (vLLM, Ollama) needs only its URL.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import install as programs
from deploy.local.processes import HOST, run
from deploy.local.server import Server

PACKAGES = ("llama-cpp-python[server]==0.3.36", "gguf==0.19.0", "numpy>=2")
BUILD_TIMEOUT_S = 3600.0
PORTABLE = "-DGGML_NATIVE=OFF"
"""Built for any machine of this kind: caches travel between them."""
CONTEXT_TOKENS = 2048
TELL_EVERY_S = 30.0
_PROBE_TIMEOUT_S = 2.0
_TINY = Path(__file__).with_name("tiny_model.py")


def environment_dir() -> Path:
    return programs.cache_dir() / "model-server-0.3.36"


def installed() -> bool:
    """Whether the server can be started without building it first."""
    return (environment_dir() / "complete").exists()


def install(say: Callable[[str], None] = lambda _line: None) -> None:
    """Builds the server where it is missing; of two that want it at once, one builds and the other waits for it.

    Raises EnvironmentProblem with the end of the build's output.
    """
    if installed():
        return
    programs.ensure(["compiler"], say)
    folder = environment_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed():
            say(f"Building llama.cpp's server (once, some minutes; kept in {folder})")
            with _telling(say):
                _build(folder)


def _build(folder: Path) -> None:
    run([sys.executable, "-m", "venv", "--clear", str(folder)], "venv", timeout_s=BUILD_TIMEOUT_S)
    pip = ["env", f"CMAKE_ARGS={PORTABLE}", str(folder / "bin" / "pip"), "install", "--quiet", *PACKAGES]
    run(pip, "the build of llama-cpp-python", timeout_s=BUILD_TIMEOUT_S)
    (folder / "complete").touch()


@contextmanager
def _telling(say: Callable[[str], None]) -> Iterator[None]:
    """A line now and then, so that nobody takes the build for hanging."""
    began_s, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(TELL_EVERY_S):
            say(f"Building llama.cpp's server, {time.monotonic() - began_s:.0f} s so far")

    thread = threading.Thread(target=tell, name="build-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class ModelServer(Server):
    """One model in one process, `model` a GGUF file; the tiny one of tiny_model.py where none is given.

    `address` is the base URL for an endpoint of the guard. Answers one request at a time, others wait for it.
    """

    kind = "llm"
    ready_timeout_s = 120.0

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        name: str | None = None,
        log_dir: Path | None = None,
        model: Path | None = None,
    ) -> None:
        super().__init__(data_dir, port, name=name, log_dir=log_dir)
        self.model = model or data_dir / "tiny.gguf"
        self._tiny = model is None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def prepare(self) -> None:
        install()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if self._tiny and not self.model.exists():
            run([_python(), str(_TINY), str(self.model)], "the making of the tiny model")

    def command(self) -> list[str]:
        words = [_python(), "-m", "llama_cpp.server", "--model", str(self.model), "--model_alias", self.model.stem]
        words += ["--host", HOST, "--port", str(self.port), "--n_ctx", str(CONTEXT_TOKENS), "--verbose", "false"]
        return [*words, "--n_threads", str(min(4, os.cpu_count() or 1)), "--chat_format", "chatml"]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/models", timeout=_PROBE_TIMEOUT_S) as answer:
                return bool(json.load(answer)["data"])
        except (OSError, ValueError, KeyError, urllib.error.URLError):
            return False


def _python() -> str:
    return str(environment_dir() / "bin" / "python")


def main() -> None:
    install(print)
    print(f"ready: {environment_dir()}")


if __name__ == "__main__":
    main()
