"""docker-compose.yml, checked as far as a machine without a Docker engine can."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.cli import COMMANDS

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
EXACT_TAG = re.compile(r"^[\w./-]+:v?\d+\.\d+(\.\d+)?(-[\w.-]+)?$")
ROLES = ("connect", "worker", "serve", "collector", "canary")
LOOKS_AT = re.compile(r"http://127\.0\.0\.1:(\d+)(/livez)")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_FILE.read_text())["services"]


def test_it_offers_the_servers_and_the_roles() -> None:
    assert set(SERVICES) == {"kafka", "postgres", "redis", "cassandra", "scylla", *ROLES}


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_to_an_exact_version(name: str) -> None:
    assert EXACT_TAG.match(SERVICES[name]["image"]), SERVICES[name]["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check_or_says_why_not(name: str) -> None:
    assert SERVICES[name].get("healthcheck", {}).get("test") or SERVICES[name].get("x-no-healthcheck")


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_host_ports_differ() -> None:
    ports = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_exists_and_has_a_health_check(name: str) -> None:
    for other in SERVICES[name].get("depends_on", {}):
        assert "healthcheck" in SERVICES[other]


def test_postgres_and_cassandra_write_change_logs() -> None:
    assert "wal_level=logical" in SERVICES["postgres"]["command"]
    assert "cdc_enabled: true" in " ".join(SERVICES["cassandra"]["entrypoint"])


@pytest.mark.parametrize("role", ROLES)
def test_the_roles_run_commands_that_exist_from_one_image(role: str) -> None:
    service = SERVICES[role]
    assert service["command"][0] == role
    assert role in COMMANDS
    assert service["image"] == SERVICES["serve"]["image"]
    assert service["profiles"] == (["canary"] if role == "canary" else ["ctxpipe"])


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_probed_at_the_port_that_it_is_told(role: str) -> None:
    service = SERVICES[role]
    test = service["healthcheck"]["test"]
    assert test[:3] == ["CMD", "python", "-c"], "the image has no shell to rely on"
    compile(test[3], "healthcheck", "exec")
    found = LOOKS_AT.fullmatch(test[4])
    assert found is not None
    assert found[1] in service["command"]


def test_the_roles_options_are_understood() -> None:
    from pipeline.cli import cli

    for role in ROLES:
        command = cli.get_command(click.Context(cli), role)
        assert command is not None
        command.make_context(role, list(SERVICES[role]["command"][1:]))


def test_docker_compose_accepts_the_file() -> None:
    if shutil.which("docker") is None or _compose("version").returncode != 0:
        pytest.skip("no docker client with the compose plugin here")
    done = _compose("-f", str(COMPOSE_FILE), "--profile", "*", "config", "--quiet")
    assert done.returncode == 0, done.stderr


def _compose(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", "compose", *arguments], capture_output=True, text=True, check=False, timeout=60)
