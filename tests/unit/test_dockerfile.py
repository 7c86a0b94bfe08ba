"""The Dockerfile, read as a builder reads it, and the script that chooses what the image is made of. No engine is here
to build it; what its build stage runs is plain Python and pip, and the choice is tested on the real lock."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy.locked import entries, hashed, main, normal, pins, wanted

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PINNED = re.compile(r"^python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}$")


def instructions() -> list[tuple[str, str]]:
    """(word, rest) in order: comments taken out, continued lines joined."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


BUILD, FINAL = stages()


def test_both_stages_stand_on_one_base_that_is_pinned_by_digest() -> None:
    defaults = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and rest.split("=", 1)[1])
    assert PINNED.match(defaults["BASE"]), defaults["BASE"]
    assert [rest.split()[0] for word, rest in instructions() if word == "FROM"] == ["${BASE}", "${BASE}"]


def test_the_pythons_of_image_and_tests_are_the_same() -> None:
    version = re.search(r"python:(\d+\.\d+)", (ROOT / "deploy" / "Dockerfile").read_text())
    assert version is not None
    assert version[1] == "3.11"
    assert 'requires-python = ">=3.11"' in PYPROJECT


def test_the_final_stage_runs_as_a_number_without_a_shell() -> None:
    last = dict(FINAL)
    assert last["USER"] == "10001:10001"
    assert json.loads(last["ENTRYPOINT"]) == ["/opt/ctxpipe/bin/ctxpipe"]
    assert json.loads(last["CMD"]) == ["--help"]
    words = [word for word, _ in FINAL]
    assert "HEALTHCHECK" not in words, "each role has probes of its own"
    assert words.index("USER") < words.index("ENTRYPOINT")


def test_the_final_stage_holds_only_what_was_installed() -> None:
    copies = [rest for word, rest in FINAL if word in ("COPY", "ADD")]
    assert copies == ["--from=build /opt/ctxpipe /opt/ctxpipe"]
    (run,) = [rest for word, rest in FINAL if word == "RUN"]
    assert not re.search(r"\b(pip|apt|apt-get|curl|wget)\b", run)


def test_what_is_copied_exists_and_is_let_in() -> None:
    copied = [path for word, rest in BUILD if word == "COPY" for path in rest.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path.split('/')[0]}" in ignored, path


def test_nothing_of_the_tests_or_of_other_deployments_is_let_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"deploy/helm", "deploy/prometheus", "deploy/grafana", "**/__pycache__"} <= set(ignored)
    assert not {"!tests", "!.git", "!.venv"} & set(ignored)


def test_packages_come_before_code_and_only_with_hashes() -> None:
    words = [f"{word} {rest}" for word, rest in BUILD]
    install = next(i for i, line in enumerate(words) if "--require-hashes" in line)
    assert "--no-index" in words[install]
    assert "--only-binary=:all:" in words[install]
    assert install < next(i for i, line in enumerate(words) if line.startswith("COPY pipeline"))
    assert any("pip check" in line for line in words[install:])


def test_every_extra_of_the_image_is_in_the_lock_with_all_it_needs() -> None:
    (extras,) = [rest.split("=", 1)[1] for word, rest in BUILD if word == "ARG" and rest.startswith("EXTRAS")]
    asked = [Requirement(line) for line in wanted(PYPROJECT, extras.split(",")).splitlines()]
    known, seen = entries(LOCK), dict[str, None]()
    while asked:
        requirement = asked.pop()
        name = normal(requirement.name)
        if name in seen:
            continue
        seen[name] = None
        assert name in known, f"{name} is not in requirements.lock"
        inner = [Requirement(line) for line in metadata.requires(requirement.name) or ()]
        environments = [{"extra": extra} for extra in (requirement.extras or {""})]
        asked += [one for one in inner if one.marker is None or any(map(one.marker.evaluate, environments))]
    assert {"faust-streaming", "faiss-cpu", "onnxruntime", "pyjwt", "cryptography", "mcp"} <= set(seen)
    assert not {"torch", "sentence-transformers", "pytest", "mypy", "ruff", "selenium"} & set(seen)


def test_an_unknown_extra_is_refused_by_name() -> None:
    done = run("wanted", str(ROOT / "pyproject.toml"), "avro,serch,embeding")
    assert done.returncode == 1
    assert "there is no extra serch, embeding; pyproject.toml has access, avro" in done.stderr


def test_pins_leave_out_what_comes_from_elsewhere() -> None:
    every = pins(LOCK).splitlines()
    assert "faust-streaming==0.15.3" in every
    assert len(every) == len(set(every)) > 150
    without = pins(LOCK, ["Torch"]).splitlines()
    assert set(every) - set(without) == {line for line in every if line.startswith("torch==")}


def test_a_wheel_gets_its_hashes_and_a_foreign_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = hashed(LOCK, ["faust_streaming-0.15.3-cp311-cp311-manylinux2014_x86_64.whl"])
    assert told.startswith("faust-streaming==0.15.3 \\\n")
    assert "--hash=sha256:" in told
    for name in ("faust_streaming-0.15.2-py3-none-any.whl", "left_pad-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert main(["hashes", str(ROOT / "requirements.lock"), str(tmp_path)]) == 1
    assert "does not have faust-streaming 0.15.2, left-pad 1.0" in capsys.readouterr().err
    assert main(["hashes", str(ROOT / "requirements.lock"), str(tmp_path), "left-pad", "faust_streaming"]) == 0


def test_the_script_needs_nothing_that_an_image_does_not_have_yet() -> None:
    done = run("pins", str(ROOT / "requirements.lock"))
    assert done.returncode == 0
    assert run().returncode == 2


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "locked.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
