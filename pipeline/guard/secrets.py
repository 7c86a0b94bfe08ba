"""What goes into records that people and other systems keep: plain data without keys and passwords, cut to a size.

Whatever an application puts into a question comes out as JSON can have it. A secret is recognised when it is one of
those that are configured, when the key that it stands under says so, or when it looks like one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from pipeline.core.config import mask_addresses
from schemas.yaml_file import SECRET_KEY

HIDDEN = "**********"
KNOWN_CHARACTERS_MIN = 6
"""A shorter one would be found in every other word."""
DEPTH_MAX = 40
CUT = " …(cut)"
SHAPES: tuple[tuple[str, str], ...] = (
    ("a key of a model provider", r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"),
    ("a token of GitHub", r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    ("a token of GitLab", r"\bglpat-[A-Za-z0-9_-]{16,}"),
    ("a token of Hugging Face", r"\bhf_[A-Za-z0-9]{30,}"),
    ("a token of Slack", r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    ("a key of AWS", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a key of Google", r"\bAIza[0-9A-Za-z_-]{35}"),
    ("a secret of a webhook", r"\bwhsec_[A-Za-z0-9+/=]{16,}"),
    ("a signed token", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    (
        "a credential of a header",
        r"(?i:\b(?:bearer|basic)\s+)(?=[A-Za-z._~+/-]*?(?:[0-9=]|[a-z][A-Z]))[A-Za-z0-9._~+/=-]{12,}",
    ),
)
"""What it is called, and what it looks like; `.` is any character. Words alone are none: "a basic understanding"."""
_LOOKS_LIKE_ONE = re.compile("|".join(shape for _, shape in SHAPES), re.DOTALL)
_NAMES_ONE = re.compile(rf"{SECRET_KEY.pattern}|^authorization$|^cookie$|^set-cookie$", re.IGNORECASE)


class Secrets:
    """`known` are those that are configured."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        wanted = {secret for secret in known if len(secret) >= KNOWN_CHARACTERS_MIN}
        self._known = sorted(wanted, key=len, reverse=True)

    def masked(self, text: str) -> str:
        """The same without secrets."""
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        return mask_addresses(_LOOKS_LIKE_ONE.sub(HIDDEN, text))


class Plain:
    """Makes JSON's own types of whatever it is: of texts the first `characters_max`, of lists and mappings the last
    `items_max`, because of a conversation the end counts. `cut`: something was left out so far."""

    def __init__(self, secrets: Secrets, characters_max: int, items_max: int) -> None:
        self._secrets, self._characters_max, self._items_max = secrets, characters_max, items_max
        self.cut = False

    def of(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value if -(2**63) <= value < 2**64 else str(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, str):
            return self.text(value)
        if depth >= DEPTH_MAX:
            self.cut = True
            return CUT.strip()
        if isinstance(value, BaseModel):
            value = dict(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): self._under(str(key), inner, depth) for key, inner in self._last(value.items())
            }
        if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
            return [self.of(inner, depth + 1) for inner in self._last(value)]
        return self.text(str(value))

    def text(self, text: str) -> str:
        """Masked before it is cut: half a secret is one, too."""
        whole = self._secrets.masked(text.encode("utf-8", "replace").decode())
        if len(whole) <= self._characters_max:
            return whole
        self.cut = True
        return whole[: self._characters_max] + CUT

    def _under(self, key: str, value: Any, depth: int) -> Any:
        named = isinstance(value, str) and value and _NAMES_ONE.search(key)
        return HIDDEN if named else self.of(value, depth + 1)

    def _last(self, values: Iterable[Any]) -> list[Any]:
        found = list(values)
        self.cut = self.cut or len(found) > self._items_max
        return found[max(0, len(found) - self._items_max) :]
