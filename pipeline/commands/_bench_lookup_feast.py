"""Feast beside us in `ctxpipe bench lookup`: an environment of its own, our bundles as its features, its server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from deploy.demo import feast_store
from deploy.demo.lookup_keys import hot_ids
from deploy.demo.lookup_load import HOST
from deploy.local.processes import choose_port
from pipeline.commands._bench_lookup_world import World
from pipeline.core.errors import EnvironmentProblem

REQUIREMENT = "feast[redis]==0.67.0"
KEYS = 5_000
"""The most wanted ones; how many there are makes no difference to it, and writing them takes it long."""
INSTALL_S_MAX = 900.0
FILL_S_MAX = 600.0
_READY = "ready"
_CONFIGURATION = """project: bench
registry: {registry}
provider: local
online_store:
  type: redis
  connection_string: "{redis}"
offline_store:
  type: file
entity_key_serialization_version: 3
telemetry: false
"""


@dataclass(frozen=True, slots=True)
class Feast:
    """A filled store. An entity has as many `values` as a bundle has in the mean, those that most bundles have."""

    python: Path
    repository: Path
    entities: int
    values: int

    @property
    def told(self) -> dict[str, Any]:
        """For the result."""
        return {"version": REQUIREMENT, "entities": self.entities, "values": self.values}

    @property
    def request(self) -> dict[str, Any]:
        """Of the load: a request of Feast's own interface, for all values of one entity."""
        return {"path": "/get-online-features", "body": request_body(feast_store.SERVICE), "hottest": self.entities}


def request_body(service: str) -> str:
    """With `{key}` where the load puts the key. Feast finds precomputed vectors only under full names."""
    full = str(service == feast_store.PRECOMPUTED).lower()
    entities = f'{{"{feast_store.KEY}":[{{key}}]}}'
    return f'{{"feature_service":"{service}","entities":{entities},"full_feature_names":{full}}}'


def environment_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ctxpipe" / "bench" / REQUIREMENT.replace("[", "-").replace("]", "").replace("==", "-")


def has_environment() -> bool:
    return (environment_folder() / _READY).exists()


def open_feast(world: World, flights: int, bundles: Sequence[bytes]) -> Feast:
    """Blocks: makes the environment where there is none, and writes the bundles of the most wanted keys, in this order,
    into the store. Raises EnvironmentProblem that says why there is no Feast to compare with."""
    python = _environment(world)
    repository = world.root / "feast"
    repository.mkdir(parents=True, exist_ok=True)
    redis = f"{HOST}:{world.redis.port},db=1"
    registry = repository / "registry.db"
    (repository / "feature_store.yaml").write_text(_CONFIGURATION.format(registry=registry, redis=redis))
    keys = hot_ids(flights)[: len(bundles)]
    rows = [{feast_store.KEY: key, **row} for key, row in zip(keys, _as_full(list(map(flat, bundles))), strict=True)]
    world.tell(f"writing {len(rows):,} entities into Feast's online store")
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    said = _run([str(python), feast_store.__file__, str(repository)], "Feast's store", FILL_S_MAX, lines)
    told = msgspec.json.decode(said.splitlines()[-1])
    return Feast(python, repository, told["entities"], told["values"])


@contextmanager
def serving_feast(world: World, feast: Feast) -> Iterator[int]:
    """Feast's Python server, one worker as ours, without access log; gives its port."""
    port = choose_port()
    words = ["-c", str(feast.repository), "serve", "--host", HOST, "--port", str(port), "--no-access-log"]
    # By default a worker ends after a thousand requests.
    words += ["--workers", "1", "--max-requests", "1000000000", "--registry_ttl_sec", "3600"]
    with world.foreign([str(feast.python.parent / "feast"), *words], port, "Feast's server", "/health"):
        yield port


def flat(bundle: bytes) -> dict[str, Any]:
    """A bundle's values by name: sections and places in lists become part of the names."""
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}__{key}" if name else key)
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                walk(inner, f"{name}_{place}")
        elif name != feast_store.KEY:
            found[name] = value

    walk(msgspec.json.decode(bundle), "")
    return found


def _as_full(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the values that most of them have, as many as they have in the mean."""
    having = Counter(name for row in rows for name in row)
    names = [name for name, _ in having.most_common(round(fmean(map(len, rows))))]
    return [{name: row.get(name) for name in names} for row in rows]


def _environment(world: World) -> Path:
    folder = environment_folder()
    python = folder / "bin" / "python"
    if not has_environment():
        world.tell(f"making an environment with {REQUIREMENT} in {folder} (once, about half a minute)")
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], "a virtual environment", INSTALL_S_MAX)
        words = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT]
        _run(words, f"installing {REQUIREMENT}", INSTALL_S_MAX)
        (folder / _READY).touch()
    return python


def _run(command: Sequence[str], what: str, timeout_s: float, text: bytes = b"") -> bytes:
    try:
        done = subprocess.run(list(command), input=text, capture_output=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"{what} failed: {error}") from error
    if done.returncode:
        last = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-1:]
        raise EnvironmentProblem(f"{what} failed: {''.join(last)}")
    return done.stdout
