"""What the chart starts really runs: its configuration, arguments and environment, as processes on real servers, asked
where the kubelet, Prometheus and callers ask."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from deploy.local.processes import choose_port
from deploy.local.roles import Role
from tests.support.charts import named, pods, rendered
from tests.support.streams import new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]  # the first run builds Helm

WAIT_S = 240.0
ENVIRONMENT = 3
"""The exit code of a role that a server keeps from starting."""
SQL = """
CREATE TABLE customers (id bigint PRIMARY KEY, name text);
INSERT INTO customers VALUES (1, 'Ada'), (2, 'Grace');
"""


class Release:
    """The pods of one release, each as a process of this machine with a folder for its volumes."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        self.folder, self.context, self.source = (
            folder,
            new_name("customer").replace("-", "_"),
            new_name("shop").replace("-", "_"),
        )
        self.secrets = {"REDIS_URL": redis_url, "SHOP_DSN": dsn}
        self.ports = {role: choose_port() for role in ("connect", "worker", "serve", "collector", "canary")}
        self.roles: dict[str, Role] = {}
        self.begun_again: set[str] = set()
        self.config: dict[str, Any] = {
            "kafka": {"bootstrap_servers": kafka, "partitions": 2},
            "redis": {"url": "${REDIS_URL}"},
            "sources": {
                self.source: {
                    "connector": "postgres",
                    "dsn": "${SHOP_DSN}",
                    "slot": f"chart_{self.source}",
                    "tables": ["public.customers", "public.ctxpipe_canary"],
                    "heartbeat_interval_s": 0.5,
                }
            },
            # what differs from a cluster: one machine, and its own addresses only
            "running": {"metrics_host": "127.0.0.1", "pause_s": 0},
            "serve": {"host": "127.0.0.1", "data_directory": str(folder / "data")},
            "collector": {"host": "127.0.0.1", "port": self.ports["collector"], "interval_s": 1, "scrape": []},
            "canary": {
                "url": f"http://127.0.0.1:{self.ports['serve']}",
                "every_s": 1,
                "late_after_s": 120,
                "sources": {self.source: {"table": "public.ctxpipe_canary"}},
            },
        }

    def values(self, metrics_port: int) -> dict[str, Any]:
        spec = {
            "context": self.context, "version": 1, "root": "customer", "fields": ["id", "name"],
            "entities": {"customer": {"source": self.source, "table": "public.customers", "key": ["id"]}},
        }  # fmt: skip
        return {
            "config": self.config,
            "contexts": {"customer.yaml": yaml.safe_dump(spec)},
            "secrets": [{"name": name, "existingSecret": "servers", "key": name} for name in self.secrets],
            "connect": {"sources": [self.source]},
            "workers": {"all": {"role": "bundles", "replicas": 1}},
            "serve": {"unprotected": True, "port": self.ports["serve"]},
            "canary": {"enabled": True},
            "metrics": {"port": metrics_port},
            "networkPolicy": {"enabled": False},
        }

    def start(self, role: str, *more: str) -> Role:
        """The container of a role with all that its pod gives it."""
        folder = self.folder / role
        folder.mkdir(exist_ok=True)
        values = folder / "values.yaml"
        values.write_text(yaml.safe_dump(self.values(self.ports[role])))
        objects = rendered("-f", str(values))
        pod = next(pod for _, pod in pods(objects) if pod["spec"]["containers"][0]["name"] == role)
        self._lay_out(folder, pod["spec"], named(objects, "ConfigMap", "live-ctxpipe-config")["data"])
        (container,) = pod["spec"]["containers"]
        environment = {"POD_NAME": f"live-{role}-0", "HOME": str(folder)}
        for one in container["env"]:
            if "value" in one:
                environment[one["name"]] = one["value"].replace("/etc/", f"{folder}/etc/")
        self.roles[role] = Role([*container["args"], *more], folder / "log", environment).start()
        return self.roles[role]

    def _lay_out(self, folder: Path, spec: Mapping[str, Any], data: Mapping[str, str]) -> None:
        """The volumes of a pod that Kubernetes would fill."""
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        for volume in spec["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                content = self.secrets if "secret" in source else data
                for item in next(iter(source.values()))["items"]:
                    path = folder / mounts[volume["name"]].lstrip("/") / item["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(content[item["key"]])

    def ask(self, role: str, path: str) -> tuple[int, str]:
        """(status, body); status 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[role]}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def until(self, role: str, path: str, wanted: str = "") -> str:
        """The first body of a good answer that holds what is wanted; fails with the last answer and the log."""
        until_s = time.monotonic() + WAIT_S
        while True:
            status, body = self.ask(role, path)
            if status == 200 and wanted in body:
                return body
            log = f"{self.roles[role].tail()}\n{status} {body[:3000]}"
            assert time.monotonic() < until_s, f"{role}{path} does not say {wanted!r}:\n{log}"
            if not self.roles[role].running():
                code = self.roles[role].stop()
                # Once, as the kubelet would: a server was too busy for its very first question.
                assert code == ENVIRONMENT and role not in self.begun_again, f"{role} ended with {code}:\n{log}"
                self.begun_again.add(role)
                self.start(role)
            time.sleep(0.2)


@pytest.fixture
def release(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> Iterator[Release]:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(SQL)
    made = Release(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    yield made
    for role in made.roles.values():
        role.kill()


def test_every_role_starts_as_the_chart_starts_it_and_ends_in_its_time(release: Release) -> None:
    prepared = release.start("canary", "--prepare")
    until_s = time.monotonic() + WAIT_S
    while prepared.running() and time.monotonic() < until_s:
        time.sleep(0.1)
    assert prepared.stop() == 0, prepared.tail()
    for role in ("connect", "worker", "serve", "collector", "canary"):
        release.start(role)
    for role in release.roles:
        for probe in ("/startupz", "/readyz", "/livez"):
            assert release.until(role, probe) in ("ok\n", '{"status":"ok"}'), "its own answer, and no other page"
    answer = json.loads(release.until("serve", f"/v1/contexts/{release.context}/2"))
    assert answer["bundle"] == {"id": 2, "name": "Grace"}
    assert f'process="{release.context}/1"' in release.until("worker", "/metrics", "ctxpipe_worker_events_total")
    assert "ctxpipe_connector_published_records_total" in release.until("connect", "/metrics")
    release.until("canary", "/metrics", f'ctxpipe_canary_up{{source="{release.source}"}} 1.0')
    lag = release.until("collector", "/lag", f"ctxpipe.{release.context}.v1")
    assert {group["group"] for group in json.loads(lag)["groups"]} >= {f"ctxpipe.{release.context}.v1"}
    for role in ("canary", "collector", "serve", "worker", "connect"):
        ended = release.roles[role].stop()
        assert ended in (0, -signal.SIGTERM), f"{role} ended with {ended}:\n{release.roles[role].tail()}"
