"""How each section becomes part of a bundle, copied or linked: the decision behind `compose: auto`.

A copied section is bytes of every bundle that shows it: one read, but a change of its row rewrites all of them. A
linked one is a fragment of its own: a change is one write, a lookup reads one value more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.text import names_used
from schemas.context import ContextSpec, Section
from schemas.fan_out import FanOut

COPY_WRITES_MAX = 16
"""A section of kind `one` is copied while a change of its row rewrites at most so many bundles."""
COPY_LIST_WRITES_MAX = 1
"""Lists and aggregates change with each of many rows: they are copied only where one parent shows them."""
_ONCE = FanOut(1.0, 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """`copied`: how many units a change rewrites if the section is copied; None where that was not measured.

    `inside`: the linked section around this one, whose fragment it is always a part of; None outside of links.
    """

    composition: str
    section: Section
    copied: FanOut | None = None
    inside: str | None = None


def default_composition(spec: ContextSpec) -> dict[str, str]:
    """Without a measurement; see `choose`."""
    return composition_of(choose(spec, {}))


def composition_of(choices: Mapping[str, Choice]) -> dict[str, str]:
    """Section path → copy or link, as compile_plan takes it."""
    return {path: choice.composition for path, choice in choices.items()}


def adopted(spec: ContextSpec, proposal: Mapping[str, str]) -> dict[str, str]:
    """The default composition with what a proposal says of sections that the spec leaves to `auto`."""
    default = choose(spec, {})
    return {
        path: proposal.get(path, choice.composition) if choice.section.compose == "auto" else choice.composition
        for path, choice in default.items()
    }


def traced_links(spec: ContextSpec, composition: Mapping[str, str]) -> tuple[str, ...]:
    """Paths of linked sections that the embedded template looks at: a change there changes texts of bundles that stay
    as they are."""
    if spec.embedded_template is None:
        return ()
    used = names_used(spec.embedded_template)
    links = (path for path, chosen in composition.items() if chosen == "link")
    return tuple(sorted(path for path in links if path.partition(".")[0] in used))


def choose(spec: ContextSpec, fan_outs: Mapping[str, FanOut]) -> dict[str, Choice]:
    """A choice for every section, outer ones first. `fan_outs`: parents per join value, by section path.

    Where a table was empty or not measured: a copy if the join is by the parent's own key, so that a change rewrites
    one bundle; otherwise a link, whose cost does not grow with the fan-out.
    """
    return dict(_choices(spec, fan_outs, spec.sections, "", spec.root, _ONCE, None))


def _choices(
    spec: ContextSpec,
    fan_outs: Mapping[str, FanOut],
    sections: Mapping[str, Section],
    above: str,
    parent: str,
    around: FanOut | None,
    inside: str | None,
) -> Iterator[tuple[str, Choice]]:
    for name, section in sections.items():
        path = above + name
        measured = fan_outs.get(path)
        copied = measured.times(around) if measured is not None and measured.most and around is not None else None
        by_key = set(section.on.values()) == set(spec.entities[parent].key)
        composition = _decide(section, copied, by_key, inside)
        yield path, Choice(composition, section, copied, inside)
        begins_link = composition == "link" and inside is None
        below = (_ONCE, path) if begins_link else (copied, inside)
        yield from _choices(spec, fan_outs, section.sections, f"{path}.", section.entity, *below)


def _decide(section: Section, copied: FanOut | None, by_key: bool, inside: str | None) -> str:
    if section.compose != "auto":
        return section.compose
    if inside is not None:
        return "copy"
    if copied is None:
        return "copy" if by_key else "link"
    most = COPY_WRITES_MAX if section.kind == "one" else COPY_LIST_WRITES_MAX
    return "copy" if copied.most <= most else "link"
