"""A real Prometheus on this machine, which scrapes what a test names and evaluates the committed rules."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deploy.local import install
from deploy.local.processes import HOST
from deploy.local.server import Server
from tests.support.prometheus import RULE_FILES

SCRAPE_S = 2


class Sample(NamedTuple):
    """One series of an answer."""

    labels: dict[str, str]
    value: float


class PrometheusServer(Server):
    """`targets`: host:port by role. It scrapes them every two seconds and evaluates the rules every second."""

    kind = "prometheus"
    ready_timeout_s = 60.0

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        name: str | None = None,
        log_dir: Path | None = None,
        targets: Mapping[str, Sequence[str]],
        rule_files: Sequence[Path] = tuple(RULE_FILES),
    ) -> None:
        super().__init__(data_dir, port, name=name, log_dir=log_dir)
        self._targets, self._rule_files = targets, rule_files

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def prepare(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        listed = [{"targets": list(places), "labels": {"role": role}} for role, places in self._targets.items()]
        config = {
            "global": {
                "scrape_interval": f"{SCRAPE_S}s",
                "scrape_timeout": f"{SCRAPE_S}s",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(file) for file in self._rule_files],
            "scrape_configs": [{"job_name": "ctxpipe", "static_configs": listed}],
        }
        self._config_file.write_text(yaml.safe_dump(config))

    def command(self) -> list[str]:
        install.ensure(["prometheus"])
        return [
            install.prometheus_program("prometheus"),
            f"--config.file={self._config_file}",
            f"--storage.tsdb.path={self.data_dir / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
            "--log.level=warn",
        ]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> list[Sample]:
        """What the expression gives now."""
        found = self._get("query", {"query": expression})["result"]
        return [Sample(one["metric"], float(one["value"][1])) for one in found]

    def rules(self) -> list[dict[str, Any]]:
        """All that are loaded, with `health`, `lastError` and, of alerts, `state`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> dict[str, str]:
        """Name → pending or firing."""
        return {one["labels"]["alertname"]: one["state"] for one in self._get("alerts")["alerts"]}

    @property
    def _config_file(self) -> Path:
        return self.data_dir / "prometheus.yml"

    def _get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        asked = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters or {})}"
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{asked}: {error.read().decode()}") from error
