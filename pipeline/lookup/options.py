"""What a caller may ask of a lookup beside the key: from headers and query parameters, all mistakes at once. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import msgspec

from pipeline.core.errors import CtxpipeError
from pipeline.lookup.principal import Principal
from schemas.context import ContextSpec, Section

BUDGET_MS_MIN, BUDGET_MS_MAX = 1, 60_000
AGE_MS_MAX = 31_536_000_000
PATHS_MAX = 100
TOKENS_MAX = 10_000_000
POSITIONS_MAX = 16
_GRPC_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_GRPC_UNITS_MS = {"H": 3_600_000.0, "M": 60_000.0, "S": 1_000.0, "m": 1.0, "u": 1e-3, "n": 1e-6}


class BadOptions(CtxpipeError):
    """All that is wrong with them, a sentence each; fit for the caller."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("; ".join(self.mistakes))


class LookupOptions(msgspec.Struct, frozen=True, kw_only=True):
    """None: as the spec says. `max_age_ms` takes the place of the spec's: an answer is fresh up to it. `positions` are
    tokens that the answer must have seen (schemas.position). `sections` and `fields` are paths with dots; what they do
    not name is left out of the bundle. `principal` is who asks, and limits what is seen; None: nothing does."""

    budget_ms: float | None = None
    max_age_ms: float | None = None
    positions: tuple[str, ...] = ()
    token_budget: int | None = None
    sections: tuple[str, ...] | None = None
    fields: tuple[str, ...] | None = None
    principal: Principal | None = None

    @property
    def selects(self) -> bool:
        return self.sections is not None or self.fields is not None

    @property
    def plain(self) -> bool:
        """Nothing but a budget, if anything: any answer in time will do."""
        return self is NO_OPTIONS or (
            self.max_age_ms is None
            and self.principal is None
            and self.token_budget is None
            and not self.positions
            and not self.selects
        )


NO_OPTIONS = LookupOptions()


def read_options(headers: Mapping[str, str], query: Iterable[tuple[str, str]]) -> LookupOptions:
    """`x-request-timeout-ms` and `grpc-timeout` (the smaller counts), or the parameter `budget_ms`; parameters
    `max_age_ms`, `position`, `token_budget`, `sections`, `fields`, the last two and `position` repeated or with commas.

    Raises BadOptions, also for parameters that nobody knows.
    """
    found: dict[str, list[str]] = {}
    for name, value in query:
        found.setdefault(name, []).append(value)
    mistakes: list[str] = []
    known = ("budget_ms", "max_age_ms", "position", "token_budget", "sections", "fields")
    for name in found:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            mistakes.append(f"{name!r} is no option of a lookup; {hint}")
    budgets = [_number(found, "budget_ms", mistakes), _header_budget(headers, mistakes)]
    options = LookupOptions(
        budget_ms=min((budget for budget in budgets if budget is not None), default=None),
        max_age_ms=_number(found, "max_age_ms", mistakes),
        positions=_listed(found, "position") or (),
        token_budget=_whole(found, "token_budget", mistakes),
        sections=_listed(found, "sections"),
        fields=_listed(found, "fields"),
    )
    mistakes += option_mistakes(options)
    if mistakes:
        raise BadOptions(mistakes)
    return options


def option_mistakes(options: LookupOptions) -> list[str]:
    """What no context could take."""
    mistakes = []
    budget, age, tokens = options.budget_ms, options.max_age_ms, options.token_budget
    if budget is not None and not BUDGET_MS_MIN <= budget <= BUDGET_MS_MAX:
        mistakes.append(f"a budget is {BUDGET_MS_MIN} to {BUDGET_MS_MAX:,} milliseconds, not {budget:,g}")
    if age is not None and not 0 <= age <= AGE_MS_MAX:
        mistakes.append(f"max_age_ms is 0 to {AGE_MS_MAX:,}, not {age:,g}")
    if tokens is not None and not 1 <= tokens <= TOKENS_MAX:
        mistakes.append(f"token_budget is 1 to {TOKENS_MAX:,}, not {tokens:,}")
    if len(options.positions) > POSITIONS_MAX:
        mistakes.append(f"{len(options.positions)} positions; at most {POSITIONS_MAX} are taken")
    for name, paths in (("sections", options.sections), ("fields", options.fields)):
        if paths is not None and len(paths) > PATHS_MAX:
            mistakes.append(f"{name} names {len(paths):,} paths; at most {PATHS_MAX} are taken")
    return mistakes


def path_mistakes(options: LookupOptions, spec: ContextSpec) -> list[str]:
    """Paths that this context does not have."""
    mistakes = []
    sections, fields = _paths_of(spec)
    for path in options.sections or ():
        if path not in sections:
            mistakes.append(f"{spec.context} has no section {path!r}; {_near(path, sections)}")
    for path in options.fields or ():
        if path not in fields and path not in sections:
            mistakes.append(f"{spec.context} has no field {path!r}; {_near(path, fields)}")
    return mistakes


def _paths_of(spec: ContextSpec) -> tuple[list[str], list[str]]:
    sections: list[str] = []
    fields = [_name(field) for field in spec.fields]

    def walk(found: Mapping[str, Section], before: str) -> None:
        for name, section in found.items():
            path = f"{before}{name}"
            sections.append(path)
            inside = [_name(field) for field in section.fields] + list(section.aggregates) + list(section.group_by)
            fields.extend(f"{path}.{field}" for field in inside)
            walk(section.sections, f"{path}.")

    walk(spec.sections, "")
    return sections, fields


def _name(field: object) -> str:
    return field if isinstance(field, str) else str(getattr(field, "name", field))


def _near(path: str, known: Sequence[str]) -> str:
    near = get_close_matches(path, known, 1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(known[:20]) or 'none'}"


def _number(found: Mapping[str, list[str]], name: str, mistakes: list[str]) -> float | None:
    if name not in found:
        return None
    text = found[name][-1]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        mistakes.append(f"{name} is a number of milliseconds, not {text[:40]!r}")
        return None
    return value


def _whole(found: Mapping[str, list[str]], name: str, mistakes: list[str]) -> int | None:
    if name not in found:
        return None
    text = found[name][-1]
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        mistakes.append(f"{name} is a whole number, not {text[:40]!r}")
        return None
    return int(text)


def _listed(found: Mapping[str, list[str]], name: str) -> tuple[str, ...] | None:
    if name not in found:
        return None
    parts = [part.strip() for value in found[name] for part in value.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))


def _header_budget(headers: Mapping[str, str], mistakes: list[str]) -> float | None:
    budgets = []
    asked = headers.get("x-request-timeout-ms")
    if asked is not None:
        budgets.append(_number({"x-request-timeout-ms": [asked]}, "x-request-timeout-ms", mistakes))
    timeout = headers.get("grpc-timeout")
    if timeout is not None:
        match = _GRPC_TIMEOUT.fullmatch(timeout.strip())
        if match is None:
            mistakes.append(f"grpc-timeout is up to eight digits and one of H M S m u n, not {timeout[:40]!r}")
        else:
            budgets.append(int(match[1]) * _GRPC_UNITS_MS[match[2]])
    return min((budget for budget in budgets if budget is not None), default=None)
