"""Models under test: the guard of a case, answers from recordings and scripted faults, and how recordings are made."""

from pipeline.evaluation.models.answers import Answers, Asked, Recorded, Source
from pipeline.evaluation.models.faults import NAMES as FAULT_NAMES
from pipeline.evaluation.models.guarding import CaseGuard, answers_of, guard_of, recorded, recordings_of
from pipeline.evaluation.models.recordings import (
    Recording,
    Recordings,
    read_recordings,
    recording_of,
    write_recordings,
)

__all__ = [
    "FAULT_NAMES",
    "Answers",
    "Asked",
    "CaseGuard",
    "Recorded",
    "Recording",
    "Recordings",
    "Source",
    "answers_of",
    "guard_of",
    "read_recordings",
    "recorded",
    "recording_of",
    "recordings_of",
    "write_recordings",
]
