"""What the model may decide about a flight, how it is asked, and what is wrong with what it says. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from deploy.demo.examples.models import CONTEXT_BEGINS, CONTEXT_ENDS
from pipeline.client import Bundle

MINUTES_MAX = 600
SAID_CHARACTERS_MAX = 4_000


class EstimateDelay(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="action", tag="estimate_delay"):
    """Write an estimate of so many minutes."""

    minutes: Annotated[int, msgspec.Meta(ge=0, le=MINUTES_MAX)]
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class NoAction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="action", tag="no_action"):
    """All is said."""

    reason: str


class AskStaff(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="action", tag="ask_staff"):
    """A person decides."""

    reason: str


Decision = EstimateDelay | NoAction | AskStaff
_DECODE = msgspec.json.Decoder(Decision).decode
_ASKED = f"""You help at the gate. Decide about this departure by the context below, and by nothing else.
Answer with one JSON object and nothing beside it, one of
{{"action": "estimate_delay", "minutes": 0 to {MINUTES_MAX}, "reason": "…"}}
{{"action": "no_action", "reason": "…"}}
{{"action": "ask_staff", "reason": "…"}}
"""


class BadDecision(ValueError):
    """What is wrong with what a model said; fit to be told to it."""


def prompt_of(bundle: Bundle, mistake: str | None = None) -> str:
    """With what is to be known of the context's age and gaps, and with what was wrong with the last answer."""
    assert bundle.raw is not None
    lines = [_ASKED]
    if bundle.status == "stale":
        age_ms = bundle.oldest_ms
        known = "unknown" if age_ms is None else f"{age_ms / 1000:.0f} s"
        lines.append(f"The context may be out of date; its age is {known}. Prefer ask_staff where that matters.")
    for section, reason in bundle.left_out.items():
        lines.append(f"Of the context, {section} is not shown ({reason}); do not guess it.")
    if mistake is not None:
        lines.append(f"Your last answer was not taken: {mistake}")
    return "\n".join([*lines, CONTEXT_BEGINS + bundle.raw.decode() + CONTEXT_ENDS])


def read_decision(said: str) -> Decision:
    """Raises BadDecision for anything but one of the three."""
    text = said.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if len(text) > SAID_CHARACTERS_MAX:
        raise BadDecision(f"it has {len(text):,} characters; at most {SAID_CHARACTERS_MAX:,} are read")
    try:
        decision: Decision = _DECODE(text.encode("utf-8", "replace"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadDecision(str(error)) from None
    return decision
