"""A folder → the suite in it: cases, contexts, models, schemas and fixtures, or every mistake of all its files at once.

Nothing runs here but imports of the flow's modules, so that a name that leads nowhere is told with its line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.core.errors import ConfigError
from pipeline.evaluation.case_file import MISTAKES_MAX, CaseLine, read_cases
from pipeline.evaluation.case_shape import FLOWLESS, GUARD, condition_mistakes, files_of, raw_files, shape_mistakes
from pipeline.evaluation.checks import expectation_mistakes
from pipeline.evaluation.checks.of_output import schema_mistake
from pipeline.evaluation.digests import file_digest, suite_digest
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.importing import import_object, prepare_imports
from pipeline.evaluation.manifest import FILE, FlowPart, Manifest
from pipeline.evaluation.models.recordings import RecordingError, read_recordings
from pipeline.evaluation.values import KINDS, Case
from pipeline.guard.config import GuardConfig, Route
from pipeline.guard.routing.config import routed
from pipeline.guard.routing.file import read_routing
from pipeline.guard.strict_json import InvalidOutput, parse
from schemas.context import ContextSpec
from schemas.context_file import read_context
from schemas.errors import SpecError
from schemas.yaml_file import Document, Mistake, mistakes_of, read_yaml, suggestion

__all__ = [
    "BASELINE",
    "FLOWLESS",
    "GUARD",
    "REPORTS",
    "ROUTING",
    "Suite",
    "import_object",
    "path_mistake",
    "prepare_imports",
    "read_suite",
    "with_model",
]

BASELINE = "baseline.json"
REPORTS = "reports"
ROUTING = "routing.yaml"
_SCHEMA_BYTES_MAX = 1_000_000
_PLACE = re.compile(r"(.+?):(\d+): ")
_NO_FIXTURES = frozenset(
    (".py", ".pyc", ".md", ".js", ".mjs", ".ts", ".go", ".rs", ".java", ".kt", ".rb", ".php", ".sh")
)
"""Code is what is judged, not what it is judged on."""


@dataclass(frozen=True)
class Suite:
    """`cases` by id, in the order of ids; `digests` of them by id, `places` where they stand. `fixtures`: sha256 by
    path, relative to the folder. `digest`: of cases and fixtures. `specs` by context, `schemas` by name. `guard` None:
    the suite names no models."""

    folder: Path
    name: str
    manifest: Manifest
    cases: tuple[Case, ...]
    digests: Mapping[str, str]
    places: Mapping[str, str]
    fixtures: Mapping[str, str]
    digest: str
    specs: Mapping[str, ContextSpec]
    guard: GuardConfig | None
    schemas: Mapping[str, Any]

    def file(self, relative: str) -> Path:
        """Of a file of the suite. Raises SuiteError where it leaves the folder or is not there."""
        told = path_mistake(self.folder, relative)
        if told:
            raise SuiteError([f"{self.folder}: {told}"])
        return self.folder / relative

    @property
    def flow(self) -> FlowPart | None:
        return self.manifest.flow


def read_suite(folder: Path) -> Suite:
    """Raises SuiteError with the mistakes of all files."""
    return _Reader(Path(folder)).read()


def with_model(suite: Suite, endpoint: str, task: str | None = None) -> Suite:
    """The same suite, with this endpoint as the primary of `task`, or of all tasks. Raises SuiteError where the suite
    has no such endpoint or task."""
    if suite.guard is None:
        raise SuiteError([f"{suite.folder}: the suite names no models; write {GUARD} with endpoints and routes"])
    names = [one.name for one in suite.guard.endpoints]
    if endpoint not in names:
        raise SuiteError([f"{suite.folder}: there is no endpoint {endpoint!r}{suggestion(endpoint, names)}"])
    if task is not None and task not in suite.guard.routes:
        hint = suggestion(task, suite.guard.routes)
        raise SuiteError([f"{suite.folder}: there is no route for the task {task!r}{hint}"])
    routes = {
        name: _with_primary(route, endpoint) if task in (None, name) else route
        for name, route in suite.guard.routes.items()
    }
    return replace(suite, guard=suite.guard.model_copy(update={"routes": routes}))


def path_mistake(folder: Path, relative: str) -> str:
    """Why it is no file of the folder, "" where it is one."""
    path = Path(relative)
    if path.is_absolute() or ".." in path.parts:
        return f"{relative!r} leaves the suite's folder; put the file inside, and write its path relative to the folder"
    whole = folder / path
    if not whole.is_file():
        near = suggestion(relative, _relative_files(folder)) if folder.is_dir() else ""
        return f"there is no file {relative!r} in the suite{near if 'did you mean' in near else ''}"
    if not whole.resolve().is_relative_to(folder.resolve()):
        return f"{relative!r} is a link that leaves the suite's folder"
    return ""


class _Reader:
    """Reads on after a mistake, so that all are told together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mistakes: list[str] = []
        self._guard_broken = self._routing_named = False
        self.schemas: dict[str, Any] = {}
        self.specs: dict[str, ContextSpec] = {}

    def read(self) -> Suite:
        document = self._document()
        manifest = self._manifest(document)
        self.specs = self._contexts(manifest)
        self.schemas = self._schemas(manifest, document)
        routing = self._routing_file(manifest)
        guard = self._routed(self._guard(manifest, document), routing)
        case_files = self._matching(manifest.cases, document, "cases")
        lines = self._cases(case_files, manifest, guard)
        self._check_counts(lines, manifest, document)
        self._check_flow(manifest, document)
        self._check_recordings(manifest)
        fixtures = self._fixtures(manifest, document, [*case_files, routing], [line.case for line in lines])
        self._raise_mistakes()
        lines.sort(key=lambda line: line.case.id)
        digests = {line.case.id: line.digest for line in lines}
        return Suite(
            folder=self._folder,
            name=manifest.suite,
            manifest=manifest,
            cases=tuple(line.case for line in lines),
            digests=digests,
            places={line.case.id: line.place for line in lines},
            fixtures=fixtures,
            digest=suite_digest(digests, fixtures),
            specs=self.specs,
            guard=guard,
            schemas=self.schemas,
        )

    def _raise_mistakes(self) -> None:
        if self._mistakes:
            more = len(self._mistakes) - MISTAKES_MAX
            told = [f"… and {more} more mistakes"] if more > 0 else []
            raise SuiteError([*self._mistakes[:MISTAKES_MAX], *told])

    def _document(self) -> Document:
        if not self._folder.is_dir():
            raise SuiteError([f"{self._folder}: there is no such folder; `ctxpipe eval init FOLDER` begins a suite"])
        if not (self._folder / FILE).exists():
            hint = "`ctxpipe eval init FOLDER` begins a suite"
            raise SuiteError([f"{self._folder / FILE}: no such file, so this is no suite; {hint}"])
        return self._yaml(self._folder / FILE)

    def _yaml(self, path: Path) -> Document:
        try:
            document = read_yaml(path)
        except SpecError as error:
            raise SuiteError(error.mistakes) from None
        if not isinstance(document.data, dict):
            raise SuiteError([f"{path}:1: must be a mapping (key: value)"])
        return document

    def _manifest(self, document: Document) -> Manifest:
        try:
            return Manifest.model_validate(document.data)
        except ValidationError as error:
            raise SuiteError(document.sentences(mistakes_of(error, Manifest, {}))) from None

    def _matching(self, patterns: Iterable[str], document: Document, key: str) -> list[Path]:
        """Files of the folder, each once, in the order of their paths; a pattern that finds nothing is a mistake."""
        found: set[Path] = set()
        for pattern in patterns:
            if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
                self._tell(document, (key,), f"{pattern!r} leaves the suite's folder")
                continue
            matched = [path for path in self._folder.glob(pattern) if path.is_file()]
            if not matched and not (key == "contexts" and key not in document.data):
                self._tell(document, (key,), f"no file matches {pattern!r} in {self._folder}")
            found.update(matched)
        return sorted(found)

    def _tell(self, document: Document, location: tuple[str | int, ...], text: str) -> None:
        self._mistakes += document.sentences([Mistake(location, text)])

    def _contexts(self, manifest: Manifest) -> dict[str, ContextSpec]:
        specs: dict[str, ContextSpec] = {}
        document = Document(self._folder / FILE, data={"contexts": None} if manifest.contexts != _CONTEXTS else {})
        for path in self._matching(manifest.contexts, document, "contexts"):
            try:
                spec = read_context(path).spec
            except SpecError as error:
                self._mistakes += error.mistakes
                continue
            if spec.context in specs:
                self._mistakes.append(f"{path}: another file of the suite has a context {spec.context!r} already")
            specs[spec.context] = spec
        return dict(sorted(specs.items()))

    def _schemas(self, manifest: Manifest, document: Document) -> dict[str, Any]:
        found = {}
        for name, relative in manifest.schemas.items():
            told = path_mistake(self._folder, relative)
            if not told:
                try:
                    text = (self._folder / relative).read_text()
                    found[name] = parse(text, _SCHEMA_BYTES_MAX)
                    told = schema_mistake(name, found[name])
                except (InvalidOutput, UnicodeDecodeError) as error:
                    told = f"{relative}: {error}"
            if told:
                self._tell(document, ("schemas", name), told)
        return found

    def _guard(self, manifest: Manifest, document: Document) -> GuardConfig | None:
        relative = manifest.guard or GUARD
        if manifest.guard is None and not (self._folder / GUARD).exists():
            return None
        told = path_mistake(self._folder, relative)
        if told:
            self._tell(document, ("guard",), told)
            self._guard_broken = True
            return None
        try:
            guard_document = self._yaml(self._folder / relative)
            return _validated(GuardConfig, guard_document)
        except SuiteError as error:
            self._mistakes += error.mistakes
            self._guard_broken = True
            return None

    def _routing_file(self, manifest: Manifest) -> Path:
        """It may be outside of the suite, where the service reads it: a change of it is what the suite is run for."""
        self._routing_named = manifest.routing is not None
        return self._folder / (manifest.routing or ROUTING)

    def _routed(self, guard: GuardConfig | None, routing: Path) -> GuardConfig | None:
        """The active models of the routing file take the place of the guard's own."""
        if guard is None or (not self._routing_named and not routing.exists()):
            return guard
        try:
            return routed(guard, read_routing(routing, guard).config)
        except ConfigError as error:
            self._mistakes += error.mistakes
            return guard

    def _cases(self, files: list[Path], manifest: Manifest, guard: GuardConfig | None) -> list[CaseLine]:
        mistakes: list[str] = []
        lines = read_cases(files, mistakes)
        for line in lines:
            told = [*expectation_mistakes(line.case, self), *shape_mistakes(line.case, manifest)]
            if not self._guard_broken:
                told += condition_mistakes(line.case, guard, self._folder)
            told += [found for one in files_of(line.case) if (found := path_mistake(self._folder, one))]
            mistakes += [f"{line.place}: case {line.case.id!r}: {one}" for one in told]
        self._mistakes += sorted(mistakes, key=_file_and_line)
        return lines

    def _check_recordings(self, manifest: Manifest) -> None:
        try:
            read_recordings(self._folder / manifest.recordings)
        except RecordingError as error:
            self._mistakes += error.mistakes

    def _check_counts(self, lines: list[CaseLine], manifest: Manifest, document: Document) -> None:
        if not lines and not self._mistakes:
            self._tell(document, ("cases",), "there is not one case")
        came = Counter(line.case.kind for line in lines)
        for kind in KINDS if manifest.counts else ():
            wanted = manifest.counts.get(kind, 0)
            if came[kind] != wanted:
                text = f"{kind}: {came[kind]} cases came, {wanted} are counted on; mend the cases, or the count"
                self._tell(document, ("counts", kind), text)

    def _check_flow(self, manifest: Manifest, document: Document) -> None:
        if manifest.flow is None:
            return
        prepare_imports(self._folder, manifest.flow)
        named: list[tuple[tuple[str | int, ...], str | None]] = [
            (("flow", "python"), manifest.flow.python),
            (("flow", "tools"), manifest.flow.tools),
            *((("flow", "functions", task), name) for task, name in manifest.flow.functions.items()),
        ]
        for location, name in named:
            if name is None:
                continue
            try:
                found = import_object(name)
            except ValueError as error:
                self._tell(document, location, str(error))
                continue
            if not isinstance(found, Callable):  # type: ignore[arg-type]  # callable() narrows it no better
                self._tell(document, location, f"{name} is a {type(found).__name__}, which can't be called")

    def _fixtures(
        self, manifest: Manifest, document: Document, others: list[Path], cases: list[Case]
    ) -> dict[str, str]:
        if manifest.fixtures is None:
            paths = {path for path in _files(self._folder) if path.suffix not in _NO_FIXTURES}
        else:
            paths = set(self._matching(manifest.fixtures, document, "fixtures"))
        paths |= {self._folder / one for case in cases for one in (*files_of(case), *raw_files(case))}
        paths -= {*others, self._folder / BASELINE}
        found = {}
        for path in sorted(paths):
            if path.is_file():
                found[path.relative_to(self._folder).as_posix()] = file_digest(path)
        return found


_CONTEXTS = Manifest(suite="x").contexts


def _validated(model: type[GuardConfig], document: Document) -> GuardConfig:
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise SuiteError(document.sentences(mistakes_of(error, model, {}))) from None


def _file_and_line(mistake: str) -> tuple[str, int]:
    """Most begin with file:line."""
    found = _PLACE.match(mistake)
    return (found[1], int(found[2])) if found else (mistake, 0)


def _with_primary(route: Route, endpoint: str) -> Route:
    others = tuple(one for one in route.others if one != endpoint)
    local = tuple(one for one in route.local if one != endpoint)
    return route.model_copy(update={"primary": endpoint, "others": others, "local": local})


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = parts[0] == REPORTS or any(part.startswith(".") or part == "__pycache__" for part in parts)
        if not hidden and path.is_file():
            yield path


def _relative_files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in _files(folder)]
