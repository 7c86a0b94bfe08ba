"""The gate in the pipelines of others: valid for GitHub and GitLab, and their very steps run in a repository of a team
that installs ctxpipe and has a suite of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.ci import GITHUB, GITLAB, schemas
from tests.support.cli import ROOT
from tests.support.eval_suite import SmallSuite
from tests.support.workflow import Ran, clean_environment, run_job

WORKFLOW = yaml.safe_load(GITHUB.read_text())
PIPELINE = yaml.safe_load(GITLAB.read_text())
BEFORE_SCRIPT_TIMEOUT_S = 300
PULL_REQUEST = {"pull_request": {"number": 7}}

GH = '''#!{python}
"""A GitHub of one pull request: comments in a file."""
import json, os, pathlib, sys
store = pathlib.Path(os.environ["COMMENTS"])
comments = json.loads(store.read_text()) if store.exists() else []
words = sys.argv[2:]
if os.environ.get("REFUSE"):
    sys.exit("HTTP 403: Resource not accessible by integration")
if "--input" not in words:
    assert words[words.index("--jq") + 1].startswith(".[] | select(")
    for one in comments:
        if one["user"]["type"] == "Bot":
            print(one["id"], one["body"].split("\\n")[0], sep="\\t")
    sys.exit()
body = json.loads(pathlib.Path(words[words.index("--input") + 1]).read_text())["body"]
method, address = words[words.index("--method") + 1], words[words.index("--method") + 2]
if method == "POST":
    assert address == "repos/team/orders/issues/7/comments", address
    comments.append({{"id": 100 + len(comments), "user": {{"type": "Bot"}}, "body": body}})
else:
    number = int(address.removeprefix("repos/team/orders/issues/comments/"))
    next(one for one in comments if one["id"] == number)["body"] = body
store.write_text(json.dumps(comments))
'''
CTXPIPE = """#!/bin/sh
for word; do
  if [ "$previous" = --markdown ] && [ {code} -le 3 ]; then echo '<!-- ctxpipe-eval: x -->' >"$word"; fi
  previous=$word
done
echo '{{}}'
exit {code}
"""


class Machine:
    """A fresh virtual environment as a runner has it, and a wheel of this project to install there. Its dependencies
    are those of the environment that the tests run in: installing them anew would test pip."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
        here = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        (next((folder / "venv" / "lib").iterdir()) / "site-packages" / "dependencies.pth").write_text(f"{here}\n")
        self.wheel = self._wheel(folder)

    def environment(self, **other: str) -> dict[str, str]:
        path = f"{self.bin}:/usr/local/bin:/usr/bin:/bin"
        return clean_environment(**{"PATH": path, "PIP_NO_DEPS": "1", **other})

    def pip(self, *words: str | Path) -> None:
        done = [self.bin / "python", "-m", "pip", *words]
        subprocess.run(done, check=True, timeout=120, env=self.environment(), capture_output=True)

    def tool(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def _wheel(self, folder: Path) -> Path:
        """Of a copy, so that nothing is built in the checkout."""
        source = folder / "source"
        for house in ("pipeline", "schemas", "connectors", "deploy"):
            shutil.copytree(ROOT / house, source / house, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        words = [
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder / "wheels"),
            str(source),
        ]
        subprocess.run([sys.executable, *words], check=True, timeout=300)
        return next((folder / "wheels").glob("ctxpipe-*.whl"))


class Team:
    """A repository with a suite whose baseline is committed on main; `change` commits a merge as a runner sees it."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.machine, self.checkout, self.comments = machine, folder / "checkout", folder / "comments.json"
        self.suite = SmallSuite(self.checkout)
        machine.tool("gh", GH.format(python=sys.executable))
        self._git("init", "--quiet", "--initial-branch=main")
        self.commit("begin")

    def commit(self, told: str) -> None:
        self._git("add", "--all")
        self._git("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "--quiet", "--message", told)

    def head(self, revision: str = "HEAD") -> str:
        return self._git("rev-parse", revision).strip()

    def said(self) -> list[dict[str, Any]]:
        found = json.loads(self.comments.read_text()) if self.comments.exists() else []
        assert isinstance(found, list)
        return found

    def github(
        self, event: Mapping[str, Any] = PULL_REQUEST, refuse: str = "", scripted: int | None = None, **inputs: Any
    ) -> Ran:
        """`scripted`: a program in ctxpipe's place that ends with this code."""
        inputs = {"suite": "evals", "install": str(self.machine.wheel), "jobs": 1, **inputs}
        environment = self.machine.environment(COMMENTS=str(self.comments), REFUSE=refuse)
        if scripted is not None:
            environment["PATH"] = self.scripted(scripted)
        return run_job(WORKFLOW, "evaluate", self.checkout, inputs, event, environment)

    def scripted(self, code: int) -> str:
        """A PATH where `ctxpipe` does nothing but end with `code`, and writes a report where that is one of its own."""
        folder = self.checkout.parent / "scripted"
        folder.mkdir(exist_ok=True)
        (folder / "ctxpipe").write_text(CTXPIPE.format(code=code))
        (folder / "ctxpipe").chmod(0o755)
        return f"{folder}:{self.machine.environment()['PATH']}"

    def gitlab(self, **variables: str) -> subprocess.CompletedProcess[str]:
        job = PIPELINE[".ctxpipe-eval-gate"]
        given = {**job["variables"], "CTXPIPE_INSTALL": str(self.machine.wheel), **variables}
        lines = "\n".join([*job["before_script"][2:], *job["script"]])  # the environment is made already
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", lines],
            cwd=self.checkout,
            env=self.machine.environment(CI_COMMIT_BEFORE_SHA=self.head("HEAD^"), **given),
            capture_output=True,
            text=True,
            timeout=BEFORE_SCRIPT_TIMEOUT_S,
        )

    def _git(self, *words: str) -> str:
        return subprocess.run(["git", *words], cwd=self.checkout, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """For tests of what comes after."""
    machine.pip("install", "--quiet", machine.wheel)
    return machine


@pytest.fixture(scope="module")
def first_baseline(tmp_path_factory: pytest.TempPathFactory, installed: Machine) -> bytes:
    suite = SmallSuite(tmp_path_factory.mktemp("first"))
    words = [installed.bin / "ctxpipe", "eval", "bless", "evals", "--reason", "first", "--jobs", "0"]
    subprocess.run(words, cwd=suite.home, check=True, timeout=60, env=installed.environment())
    return suite.baseline.read_bytes()


@pytest.fixture
def team(tmp_path: Path, installed: Machine, first_baseline: bytes) -> Team:
    team = Team(tmp_path, installed)
    team.suite.baseline.write_bytes(first_baseline)
    team.commit("first baseline")
    return team


@pytest.mark.parametrize("file", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_the_files_keep_to_the_published_schemas(file: Path) -> None:
    text = file.read_text()
    values = yaml.safe_load(re.sub(r"^on:", '"on":', text, flags=re.MULTILINE))  # YAML 1.1 reads `on` as true
    schema = schemas()[file]
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [f"{list(one.path)}: {one.message}" for one in validator.iter_errors(values)] == []


def test_no_input_of_a_caller_gets_into_a_shell_but_by_a_variable() -> None:
    for step in WORKFLOW["jobs"]["evaluate"]["steps"]:
        assert "${{" not in step.get("run", ""), f"{step['name']}: an input could hold commands"
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    checkout = WORKFLOW["jobs"]["evaluate"]["steps"][0]
    assert checkout["with"] == {"fetch-depth": 2, "persist-credentials": False}


def test_a_pull_request_that_changes_nothing_passes(team: Team) -> None:
    (team.checkout / "notes.txt").write_text("nothing")
    team.commit("notes")
    team.machine.pip("uninstall", "--quiet", "--yes", "ctxpipe")
    ran = team.github()
    assert ran.failed == [] and ran.outputs == {"verdict": "pass"}, ran.said
    assert "Evaluation of orders&#58; pass" in ran.summary or "Evaluation of orders: pass" in ran.summary
    (upload,) = [given for name, given in ran.actions if name.startswith("actions/upload-artifact")]
    assert upload["name"] == "evaluation-evals"
    assert sorted(path.name for path in Path(upload["path"]).iterdir()) == [
        "comment.md",
        "junit.xml",
        "metrics.prom",
        "report.html",
        "results.jsonl",
        "verdict.json",
    ]
    assert json.loads((Path(upload["path"]) / "verdict.json").read_text())["verdict"] == "pass"
    assert [one["body"].splitlines()[0] for one in team.said()] == ["<!-- ctxpipe-eval: orders -->"]


def test_a_pull_request_that_makes_it_worse_is_blocked_and_told_in_one_comment(team: Team) -> None:
    forged = {"id": 1, "user": {"type": "User"}, "body": "<!-- ctxpipe-eval: orders -->\nall is well"}
    other = {"id": 2, "user": {"type": "Bot"}, "body": "<!-- ctxpipe-eval: orders of others -->\nnot ours"}
    team.comments.write_text(json.dumps([forged, other]))
    team.suite.break_flow()
    team.commit("faster")
    ran = team.github()
    assert ran.failed == ["Decide"] and ran.codes["Decide"] == 1
    assert ran.outputs == {"verdict": "regression"}
    assert "::error::The evaluation tells of a regression" in ran.said["Decide"]
    assert "double/7" in ran.summary
    assert [one["id"] for one in team.said()] == [1, 2, 102]
    assert "double/7" in team.said()[2]["body"]
    team.suite.flow((team.checkout / "doubling.py").read_text().replace("(number > 6)", "0"))
    team.commit("mended")
    assert team.github().failed == []
    assert [one["id"] for one in team.said()] == [1, 2, 102], "the same comment, written anew"
    assert "double/7" not in team.said()[2]["body"]
    assert team.said()[:2] == [forged, other]


def test_a_baseline_that_a_pull_request_moves_is_told(team: Team) -> None:
    team.suite.break_flow()
    words = ["bless", "evals", "--reason", "cheaper", "--accept", "double/7", "--accept", "double/8", "--jobs", "0"]
    environment = team.machine.environment()
    subprocess.run([team.machine.bin / "ctxpipe", "eval", *words], cwd=team.checkout, check=True, env=environment)
    team.commit("cheaper")
    ran = team.github()
    assert ran.failed == []
    assert "This change moves the baseline" in ran.summary and "no longer have to pass" in ran.summary


def test_a_broken_suite_decides_nothing(team: Team) -> None:
    team.suite.write("suite.yaml", "suite: orders\nflwo: {}\n")
    team.commit("oops")
    ran = team.github()
    assert (ran.failed, ran.codes["Decide"], ran.outputs) == (["Decide"], 3, {"verdict": "harness_error"})
    assert "suite.yaml" in ran.summary and "flwo" in ran.summary


def test_without_a_pull_request_nobody_comments(team: Team) -> None:
    ran = team.github(event={}, scripted=0)
    assert ran.failed == [] and "Comment" not in ran.codes
    assert "Comment" not in team.github(comment=False, scripted=0).codes
    assert team.said() == []
    assert "Comment" in team.github(scripted=0).codes
    assert len(team.said()) == 1


def test_a_token_that_may_not_comment_changes_no_verdict(team: Team) -> None:
    ran = team.github(refuse="yes", scripted=0)
    assert ran.failed == [] and ran.outputs == {"verdict": "pass"}
    assert "::warning::No comment was written" in ran.said["Comment"]


def test_what_can_not_be_installed_decides_nothing(team: Team) -> None:
    ran = team.github(install="./nowhere-to-be-found.whl")
    assert ran.failed == ["Install", "Decide"] and ran.codes["Decide"] == 3


@pytest.mark.parametrize(
    ("code", "blocks", "verdict", "decided"),
    [
        (0, True, "pass", 0),
        (1, False, "regression", 1),
        (2, True, "inconclusive", 2),
        (2, False, "inconclusive", 0),
        (3, False, "harness_error", 3),
        (137, False, "harness_error", 3),
    ],
)
def test_every_exit_code_means_what_it_says(code: int, blocks: bool, verdict: str, decided: int, team: Team) -> None:
    ran = team.github(event={}, scripted=code, install="", **{"inconclusive-blocks": blocks})
    assert ran.outputs == {"verdict": verdict}, ran.said
    assert ran.codes["Decide"] == decided
    told = {"CTXPIPE_INSTALL": "-r /dev/null", "CTXPIPE_INCONCLUSIVE_BLOCKS": str(blocks).lower()}
    done = team.gitlab(PATH=team.scripted(code), **told)
    assert done.returncode == decided, done.stderr


class GitLab:
    """One merge request, its notes and who asks; over real HTTP."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []
        gitlab = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = re.search(r"page=(\d+)$", self.path)
                if self.path.endswith("/user"):
                    self._answer({"id": 5})
                else:  # two notes a page
                    first = 2 * (int(page[1]) - 1) if page else 0
                    more = str(first // 2 + 2) if first + 2 < len(gitlab.notes) else ""
                    self._answer(gitlab.notes[first : first + 2], more)

            def do_POST(self) -> None:
                gitlab.notes.append({"id": 100 + len(gitlab.notes), "author": {"id": 5}, "body": self._body()})
                self._answer({})

            def do_PUT(self) -> None:
                number = int(self.path.rpartition("/")[2])
                next(one for one in gitlab.notes if one["id"] == number)["body"] = self._body()
                self._answer({})

            def _body(self) -> str:
                assert self.headers["PRIVATE-TOKEN"] == "t0ken"
                read = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                return str(read["body"])

            def _answer(self, value: Any, next_page: str = "") -> None:
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("X-Next-Page", next_page)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Tests are quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def variables(self, team: Team) -> dict[str, str]:
        return {
            "CI_API_V4_URL": f"http://127.0.0.1:{self.server.server_port}/api/v4",
            "CI_PROJECT_ID": "3",
            "CI_MERGE_REQUEST_IID": "7",
            "CI_MERGE_REQUEST_DIFF_BASE_SHA": team.head("HEAD^"),
            "CTXPIPE_NOTE_TOKEN": "t0ken",
        }


@pytest.fixture
def gitlab() -> Iterator[GitLab]:
    found = GitLab()
    yield found
    found.server.shutdown()


def test_a_merge_request_of_gitlab_has_one_note(team: Team, gitlab: GitLab) -> None:
    others = [{"id": number, "author": {"id": 6}, "body": "<!-- ctxpipe-eval: orders -->"} for number in range(3)]
    gitlab.notes += others
    team.suite.break_flow()
    team.commit("faster")
    blocked = team.gitlab(**gitlab.variables(team))
    assert blocked.returncode == 1, blocked.stderr
    assert "Evaluation: regression" in blocked.stdout
    assert len(gitlab.notes) == 4 and "double/7" in gitlab.notes[3]["body"]
    reports = team.checkout / "ctxpipe-eval-reports"
    assert {"junit.xml", "report.html", "base.json"} <= {path.name for path in reports.iterdir()}
    team.suite.flow((team.checkout / "doubling.py").read_text().replace("(number > 6)", "0"))
    team.commit("mended")
    passed = team.gitlab(**gitlab.variables(team))
    assert (passed.returncode, "Evaluation: pass" in passed.stdout) == (0, True), passed.stderr
    assert len(gitlab.notes) == 4 and "double/7" not in gitlab.notes[3]["body"]
    assert gitlab.notes[:3] == others


def test_a_gitlab_that_takes_no_note_changes_no_verdict(team: Team, gitlab: GitLab) -> None:
    gitlab.server.shutdown()
    gitlab.server.server_close()
    done = team.gitlab(**gitlab.variables(team))
    assert done.returncode == 0, done.stderr
    assert "No note was written" in done.stdout


@pytest.mark.parametrize(("host", "file"), [("github", GITHUB), ("gitlab", GITLAB)])
def test_whoever_installed_the_package_has_both_files(
    host: str, file: Path, installed: Machine, tmp_path: Path
) -> None:
    words = [installed.bin / "ctxpipe", "eval", "workflow", host]
    done = subprocess.run(words, cwd=tmp_path, env=installed.environment(), capture_output=True, text=True, check=True)
    assert done.stdout == file.read_text()


def test_the_suite_to_begin_with_passes_where_nothing_else_is(tmp_path: Path, installed: Machine) -> None:
    environment = installed.environment()
    for words in (["init", "evals"], ["bless", "evals", "--reason", "first"], ["run", "evals", "--html", "page.html"]):
        done = subprocess.run(
            [installed.bin / "ctxpipe", "eval", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout
    assert "<svg" in (tmp_path / "page.html").read_text()
