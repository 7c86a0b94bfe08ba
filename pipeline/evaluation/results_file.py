"""results.jsonl: what a run found, byte for byte the same for the same results; comparisons and evidence refer to it.

The first line says which run it was, every other line is one case's result, in the order of ids. How long it took on
this machine is not in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pipeline.evaluation.digests import canonical, digest_of, file_digest, sha256
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.values import CaseResult, CheckResult, Kind, Run, Step

__all__ = ["canonical", "file_digest", "read_results", "results_bytes", "run_digest", "write_results"]

FORMAT = "ctxpipe-eval-results"
VERSION = 1
LINE_BYTES_MAX = 16 * 1024 * 1024
_HEADER_KEYS = ("suite", "suite_digest", "digest", "flow", "models", "fixtures", "harness")


def run_digest(results: Iterable[CaseResult]) -> str:
    """Of all results in the order of ids: equal in every run of the same code on the same cases."""
    return digest_of([[one.id, one.digest, one.passed, one.output_digest] for one in sorted(results, key=_id)])


def results_bytes(run: Run) -> bytes:
    header = {"format": FORMAT, "version": VERSION, **{key: getattr(run, key) for key in _HEADER_KEYS}}
    lines = [canonical(header), *(canonical(one) for one in sorted(run.results, key=_id))]
    return b"\n".join(lines) + b"\n"


def write_results(run: Run, path: Path) -> str:
    """Replaces the file at once, and returns its sha256. Raises OSError."""
    content = results_bytes(run)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return sha256(content)


def read_results(path: Path) -> Run:
    """Raises SuiteError with the line of what is wrong: no such file, no JSON, another format, results that are not
    those that the digest was made of."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SuiteError([f"{path}: cannot be read: {error.strerror}"]) from None
    if not lines:
        raise SuiteError([f"{path}: the file is empty; write one with `ctxpipe eval run SUITE --results {path.name}`"])
    header = _header(lines[0], path)
    results = tuple(_result(line, f"{path}:{number}") for number, line in enumerate(lines[1:], 2))
    ids = [one.id for one in results]
    twice = next((one for one, other in zip(sorted(ids), sorted(ids)[1:], strict=False) if one == other), None)
    if twice is not None:
        raise SuiteError([f"{path}: the case {twice!r} stands in it twice"])
    if run_digest(results) != header["digest"]:
        raise SuiteError([f"{path}: its results are not those of its first line; it was changed after the run, or cut"])
    parts = {key: header[key] for key in _HEADER_KEYS if key != "harness"}
    return Run(results=results, harness=tuple(header["harness"]), **parts)


def _header(line: bytes, path: Path) -> Mapping[str, Any]:
    header = _json(line, f"{path}:1")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise SuiteError([f"{path}:1: this is no file of results; `ctxpipe eval run SUITE --results FILE` writes one"])
    if header.get("version") != VERSION:
        raise SuiteError(
            [f"{path}:1: it has version {header.get('version')!r}, this program reads {VERSION}; run again"]
        )
    lacking = [key for key in _HEADER_KEYS if key not in header]
    if lacking:
        raise SuiteError([f"{path}:1: {', '.join(lacking)} is missing; the file is damaged, run again"])
    return header


def _result(line: bytes, place: str) -> CaseResult:
    value = _json(line, place)
    try:
        if value["kind"] not in get_args(Kind):
            raise ValueError(f"there are no cases of the kind {value['kind']!r}")
        checks = tuple(CheckResult(**one) for one in value.pop("checks"))
        steps = tuple(Step(**one) for one in value.pop("steps"))
        return CaseResult(**{**value, "tags": tuple(value["tags"])}, checks=checks, steps=steps)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SuiteError([f"{place}: this is no result of a case: {error}"]) from None


def _json(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise SuiteError([f"{place}: not JSON: {error}; the file is damaged, run again"]) from None


def _id(result: CaseResult) -> str:
    return result.id
