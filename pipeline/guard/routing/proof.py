"""Reads the evidence that a routing file names; only the file with the digest that was reviewed counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from pipeline.guard.evidence import Evidence
from pipeline.guard.routing.config import EvidenceFile
from pipeline.guard.routing.deciding import Refusal

EVIDENCE_BYTES_MAX = 1_000_000


def evidence_path(routing: Path, named: EvidenceFile) -> Path:
    return routing.parent / named.file


def read_evidence(path: Path, sha256: str | None) -> Evidence | Refusal:
    """`sha256` None: whichever it is. Blocks."""
    try:
        if path.stat().st_size > EVIDENCE_BYTES_MAX:
            return Refusal("evidence_unreadable", f"{path}: is larger than {EVIDENCE_BYTES_MAX} bytes; no evidence is")
        content = path.read_bytes()
    except OSError as error:
        told = f"{path}: the evidence can't be read: {error.strerror}; commit it beside the routing file"
        return Refusal("evidence_missing", told)
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        told = f"{path}: is not the evidence that was reviewed: its sha256 is {found}, the routing file says {sha256}"
        return Refusal("evidence_digest", told)
    try:
        return Evidence.model_validate_json(content)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        told = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in wrong[:5])
        return Refusal("evidence_unreadable", f"{path}: is no evidence: {told}. Make it with ctxpipe eval compare")
