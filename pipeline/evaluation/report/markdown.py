"""The report as a comment on a pull request: short, of limited size, and nothing in it that a model could format."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.gate import Flip, listed
from pipeline.evaluation.report.difference import side_by_side
from pipeline.evaluation.report.reported import STATE_TEXTS, VERDICT_TEXTS, Moved, Reported
from pipeline.evaluation.report.visible import cut, output_texts, visible

CHARACTERS_MAX = 60_000
"""GitHub takes 65,536 of a comment, GitLab more."""
WIDTH, LINES_MAX, OUTPUT_CHARACTERS_MAX = 56, 24, 3000
TOLD_CHARACTERS_MAX = 600
AS_ENTITIES = {ord(sign): f"&#{ord(sign)};" for sign in "&<>\"'@#!*_`[]\\~|:\n"} | {ord("\t"): "  "}
"""In Markdown, too, an entity is never markup."""
NO_MENTIONS = {ord(sign): f"&#{ord(sign)};&#8203;" for sign in "@#"}
SIGNS = {"pass": "✅", "partial": "✅", "regression": "❌", "inconclusive": "❔", "harness_error": "⚠️"}


def marker(suite: str) -> str:
    """The first line, by which a later run finds the comment that it replaces."""
    return f"<!-- ctxpipe-eval: {_inline(suite).replace('--', '- -')} -->"


def markdown(found: Reported, characters_max: int = CHARACTERS_MAX) -> str:
    """At most so many characters; flips that do not fit are counted."""
    text = "".join(f"{line}\n" for line in _head(found))
    flips = found.judgement.flips
    for number, flip in enumerate(flips):
        block = _flip(flip)
        if len(text) + len(block) > characters_max - 200:
            text += f"\nand {len(flips) - number} more that flipped; the page and the JUnit file have them all.\n"
            break
        text += block
    return text if len(text) <= characters_max else text[: characters_max - 2] + "…\n"


def _head(found: Reported) -> Iterator[str]:
    one = found.judgement
    yield marker(one.suite)
    yield f"### {SIGNS[one.verdict]} Evaluation of {_inline(one.suite)}: {VERDICT_TEXTS[one.verdict]}"
    yield ""
    yield from (f"- {_inline(reason)}" for reason in one.reasons[:20])
    if len(one.reasons) > 20:
        yield f"- and {len(one.reasons) - 20} more"
    yield ""
    if one.cases:
        yield "| cases | passed | failed | of these accepted | flipped | missing | new | improved |"
        yield "| --: | --: | --: | --: | --: | --: | --: | --: |"
        counts = (one.cases, one.passed, one.failed, len(one.accepted), len(one.of("regressed", "failed")),
                  len(one.of("missing")), len(one.new), len(one.of("improved")))  # fmt: skip
        yield f"| {' | '.join(f'{count:,}' for count in counts)} |"
        yield ""
    yield from (f"- {_inline(note)}" for note in one.notes[:20])
    if one.other_output:
        yield f"- {len(one.other_output)} cases pass as before with another output or trace"
    if found.moved is not None:
        yield ""
        yield from _moved(found.moved)


def _moved(moved: Moved) -> Iterator[str]:
    yield "**This change moves the baseline:**"
    yield ""
    for entry in moved.blessings:
        yield f"- {_inline(entry.reason)} ({_inline(entry.by)}, {entry.date}): {_inline('; '.join(entry.moved))}"
    if not moved.blessings:
        yield "- without a reason that the other branch does not have"
    if moved.now_fail:
        yield f"- no longer have to pass: {_inline(listed(moved.now_fail))}"
    if moved.gone:
        yield f"- no longer demanded: {_inline(listed(moved.gone))}"


def _flip(flip: Flip) -> str:
    """HTML, because Markdown has no two columns of code. A cell is one line, so that no empty line ends the block."""
    before, now = output_texts(flip.before, flip.now, OUTPUT_CHARACTERS_MAX)
    pairs = side_by_side(before, now, WIDTH, LINES_MAX)
    left = "\n".join(f"{'-' if pair.differs and pair.left else ' '} {pair.left}" for pair in pairs)
    right = "\n".join(f"{'+' if pair.differs and pair.right else ' '} {pair.right}" for pair in pairs)
    told = [f"{check.check}: {check.told}" for check in flip.now.checks if not check.passed] if flip.now else []
    lines = [
        "",
        f"<details><summary><code>{_text(flip.id)}</code> ({flip.kind}): {STATE_TEXTS[flip.state]}</summary>",
        *([f"<p>{_inline(cut(flip.why, TOLD_CHARACTERS_MAX))}</p>"] if flip.why else []),
        *(f"<pre>{_text(cut(one, TOLD_CHARACTERS_MAX))}</pre>" for one in told[:5]),
        f"<table><tr><th>baseline</th><th>now</th></tr><tr><td><pre>{_text(left)}</pre></td>"
        f"<td><pre>{_text(right)}</pre></td></tr></table>",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def _text(text: str) -> str:
    """Inside of HTML: shown as it is, whatever is in it, on one line."""
    return visible(text).translate(AS_ENTITIES)


def _inline(text: str) -> str:
    """Inside of Markdown, on one line; names behind @ are not called, numbers behind # not linked."""
    return " ".join(visible(text).split()).translate(AS_ENTITIES | NO_MENTIONS)
