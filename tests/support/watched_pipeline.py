"""All roles of ctxpipe around one canary, with a collector and a Prometheus that watch them: faults are made here, and
one looks who names them and when."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from deploy.local.kafka import KafkaServer
from deploy.local.processes import HOST, choose_port
from deploy.local.redis import RedisServer
from deploy.local.roles import Role
from tests.support.cli import ctxpipe
from tests.support.eventually import eventually_sync
from tests.support.forwarder import Forwarder
from tests.support.prometheus import alerts
from tests.support.prometheus_server import PrometheusServer, Sample
from tests.support.running_pipeline import RunningPipeline, free_port
from tests.support.servers import LocalRoot

TABLE = "ctxpipe_canary"
FAULTS = frozenset(
    f"Ctxpipe{name}"
    for name in ("PartitionFrozen", "ConnectorStopped", "ReplicaStalled", "EmbedderStopped", "CanaryLate")
)
"""Alerts on what is now; those that look back on minutes still have in them what was before."""
NAMED_S_MAX = 60.0
"""Half a minute where nothing else runs; the figures are told."""


class TwoDoors(KafkaServer):
    """With a second listener, whose clients are led through another port: a proxy's."""

    def __init__(self, *, inner_port: int, proxy_port: int, **options: Any) -> None:
        super().__init__(**options)
        self._inner_port, self._proxy_port = inner_port, proxy_port

    def _listeners(self) -> dict[str, str]:
        found = super()._listeners()
        found["listeners"] += f",PROXIED://{HOST}:{self._inner_port}"
        found["advertised.listeners"] += f",PROXIED://{HOST}:{self._proxy_port}"
        names = ("PLAINTEXT", "PROXIED", "CONTROLLER")
        return {**found, "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in names)}


class Named(NamedTuple):
    """Who named a fault: seconds after it, by the finding, the alert's expression and the canary."""

    finding: dict[str, Any]
    alert: Sample
    canary: str
    seconds: dict[str, float]


class WatchedPipeline:
    """Workers of two processes, an embedder, two serving replicas of which one reaches Kafka by a proxy, a connector, a
    canary that looks at both replicas, a collector and a Prometheus."""

    def __init__(self, folder: Path, root: LocalRoot, dsn: str) -> None:
        self._folder, self._root = folder, root
        inner_port = free_port()
        self.proxy = Forwarder(inner_port)
        self._kafka = TwoDoors(
            inner_port=inner_port, proxy_port=self.proxy.port, heap_mib=384, **root.place("two-doors")
        )
        self._redis = RedisServer(**root.place("watched-redis"), appendonly=False)
        self._kafka.start()
        self._redis.start()
        self.ports = {name: free_port() for name in ("connect", "worker", "embedder", "a", "b", "collector", "canary")}
        self.pipeline = RunningPipeline(folder, self._kafka.address, self._redis.address, dsn, "SELECT 1", [TABLE])
        self.source, self.context = self.pipeline.source, f"canary_{self.pipeline.source}"
        self._configure()
        self._prometheus: PrometheusServer | None = None

    def start(self) -> None:
        """All roles, until the canary comes through and nothing is wrong."""
        prepared = self._command("canary", "--prepare")
        assert prepared[0] == 0, prepared
        self.start_connector()
        ports = {name: str(port) for name, port in self.ports.items()}
        role = self.pipeline.role
        self.worker = role(
            "worker", self.context, "--role", "bundles", "--processes", "2", *self._worker_ports("worker")
        )
        self.start_embedder()
        self.replica_a = role("serve", "--port", ports["a"])
        self.replica_b = self._behind_the_proxy("serve", "--port", ports["b"])
        role("canary", "--metrics-port", ports["canary"])
        role("collector")
        named = {"connect": "connect", "worker": "worker", "embedder": "embedder", "a": "serve", "b": "serve"}
        targets: dict[str, list[str]] = {"collector": [self._place("collector")], "canary": [self._place("canary")]}
        for name, kind in named.items():
            targets.setdefault(kind, []).append(self._place(name))
        self._prometheus = PrometheusServer(**self._root.place("prometheus"), targets=targets)
        self._prometheus.start()
        self.until_well()

    def start_connector(self) -> None:
        self.connector = self.pipeline.role("connect", self.source, "--metrics-port", str(self.ports["connect"]))

    def start_embedder(self) -> None:
        self.embedder = self.pipeline.role(
            "worker", self.context, "--role", "embedding", *self._worker_ports("embedder")
        )

    def kill(self, role: Role) -> None:
        """Together with what it has started."""
        for process in [psutil.Process(role.pid), *psutil.Process(role.pid).children(recursive=True)]:
            process.kill()
        role.stop()
        self.pipeline.roles.remove(role)

    def workers(self) -> list[psutil.Process]:
        """The processes that the worker's supervisor has started."""
        return [one for one in psutil.Process(self.worker.pid).children() if self.context in one.cmdline()]

    def close(self) -> None:
        for role in self.pipeline.roles:
            if role.running():
                self._wake(role)
        self.proxy.flow()
        self.pipeline.stop()
        for server in filter(None, (self._prometheus, self._kafka, self._redis)):
            server.kill()
            server.remove_data()
        self.proxy.close()

    def _wake(self, role: Role) -> None:
        for process in [psutil.Process(role.pid), *psutil.Process(role.pid).children(recursive=True)]:
            process.send_signal(signal.SIGCONT)

    # ---- who names it

    def explained(self) -> tuple[int, list[str]]:
        """`ctxpipe lag --explain`, as a person asks: exit code and lines."""
        return self._command("lag", "--explain")

    def findings(self) -> list[dict[str, Any]]:
        """Of the collector's newest report."""
        found: list[dict[str, Any]] = self._json("collector", "/lag")["findings"]
        return found

    def canary(self) -> dict[str, Any]:
        found: dict[str, Any] = self._json("canary", "/canaries")["canaries"][0]
        return found

    def alarmed(self, alert: str) -> list[Sample]:
        """Series for which the alert's expression holds now."""
        assert self._prometheus is not None
        return self._prometheus.query(str(alerts()[alert]["expr"]))

    def asked(self, expression: str) -> list[Sample]:
        """What Prometheus answers; a mistake in it fails the test."""
        assert self._prometheus is not None
        return self._prometheus.query(expression)

    def rules(self) -> list[dict[str, Any]]:
        assert self._prometheus is not None
        return self._prometheus.rules()

    def page(self, name: str) -> bytes:
        """/metrics of a role, by the name of its port."""
        with urllib.request.urlopen(f"http://{self._place(name)}/metrics", timeout=10) as answer:
            body: bytes = answer.read()
        return body

    def alarms(self) -> dict[str, str]:
        """Name → pending or firing."""
        assert self._prometheus is not None
        return self._prometheus.alerts()

    def until_named(
        self,
        since_s: float,
        finding: Callable[[dict[str, Any]], bool],
        alert: str,
        series: Callable[[dict[str, str]], bool],
        canary: str,
    ) -> Named:
        """By all three, and when each was first. `since_s` of time.monotonic; `canary`: words of its reason."""
        seen: dict[str, Any] = {}
        seconds: dict[str, float] = {}

        def look() -> set[str]:
            asked = {
                "finding": lambda: next(filter(finding, self.findings()), None),
                "alert": lambda: next((one for one in self.alarmed(alert) if series(one.labels)), None),
                "canary": lambda: self.canary()["reason"] if self._canary_says(canary) else None,
            }
            for name, ask in asked.items():
                if name not in seen and (found := ask()) is not None:
                    seen[name], seconds[name] = found, round(time.monotonic() - since_s, 1)
            return {*asked} - {*seen}

        eventually_sync(
            look, lambda missing: not missing, timeout_s=90, what=f"{alert} is named", ignore=(OSError, ValueError)
        )
        return Named(seen["finding"], seen["alert"], seen["canary"], seconds)

    def until_well(self) -> None:
        """Nothing is wrong, nothing is alarmed, and the canary comes through."""

        def look() -> list[str]:
            for role in self.pipeline.roles:
                role.ensure_running()
            canary = self.canary()
            wrong = [f"{one['where']}: {one['what']}" for one in self.findings() if one["severity"] == "wrong"]
            alarms = FAULTS & set(self.alarms())
            return [*wrong, *alarms, *([] if canary["up"] else [f"canary: {canary['reason'] or 'not yet'}"])]

        eventually_sync(
            look, lambda troubles: not troubles, timeout_s=150, what="all is well",
            ignore=(OSError, ValueError, IndexError, KeyError),
        )  # fmt: skip

    def _canary_says(self, words: str) -> bool:
        """Its own page and what Prometheus has of it."""
        late = {one.labels["source"] for one in self.alarmed("CtxpipeCanaryLate")}
        return words in self.canary()["reason"] and self.source in late

    # ---- how it is made

    def _configure(self) -> None:
        config = self.pipeline.config
        config["kafka"]["session.timeout.ms"] = 20_000
        config["contexts"] = []
        config["canary"] = {
            "url": [f"http://{self._place(name)}" for name in ("a", "b")],
            "every_s": 0.5,
            "late_after_s": 4,
            "sources": {self.source: {"table": f"public.{TABLE}", "embedding": {"engine": "hash"}}},
        }
        config["collector"] = {
            "port": self.ports["collector"],
            "url": f"http://{self._place('collector')}",
            "interval_s": 1,
            "commit_interval_s": 2,
            "groups": [f"ctxpipe.{self.context}.*"],
            "scrape": [f"http://{self._place(name)}/metrics" for name in ("worker", "embedder", "a", "b")],
        }
        self.pipeline.write_config()
        proxied = {**config, "kafka": {**config["kafka"], "bootstrap_servers": f"{HOST}:{self.proxy.port}"}}
        (self._folder / "proxied.yaml").write_text(yaml.safe_dump(proxied))

    def _worker_ports(self, name: str) -> list[str]:
        """One page for all processes, each of which has a port of its own behind it."""
        return ["--health-port", str(self.ports[name]), "--metrics-port", str(choose_port())]

    def _behind_the_proxy(self, *words: str) -> Role:
        role = Role(
            [*words, "--config", str(self._folder / "proxied.yaml")],
            self._folder / f"proxied-{words[0]}.log",
            {"PYTHONPATH": os.getcwd()},
        )
        self.pipeline.roles.append(role)
        return role.start()

    def _place(self, name: str) -> str:
        return f"{HOST}:{self.ports[name]}"

    def _json(self, name: str, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self._place(name)}{path}", timeout=10) as answer:
            return json.load(answer)

    def _command(self, *words: str) -> tuple[int, list[str]]:
        done = ctxpipe(*words, "--config", str(self.pipeline.config_path), folder=self._folder)
        return done.code, (done.out + done.err).splitlines()
