"""What of a bundle fits into so many tokens: sections go, the least important first. Pure.

Where the spec names a tokenizer, bundles bring the counts of their sections, and nothing is counted here. Else a word
or a sign is a token, as in texts (pipeline.text). Names and punctuation of JSON count: they are read too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pipeline.lookup.answer import Answer, is_within, with_parts
from pipeline.lookup.selection import drop
from pipeline.stores.store import Fetched
from pipeline.text import WORDS, count_tokens, least_important_first
from schemas.context import ContextSpec

Counts = Mapping[str, int]
"""Tokens by section, without those of sections in it; "" is the bundle's own part."""


def within_budget(
    answer: Answer, budget: int, spec: ContextSpec, fetched: Fetched, empty: Mapping[str, bytes], narrowed: bool = False
) -> Answer:
    """The answer without the sections that are too much, and with the tokens of what is left. `fetched` is what it was
    made from (Fetched(None, {}) for a default bundle); `narrowed`: of some sections only some fields are left."""
    if answer.bundle is None:
        return answer
    counts = stored_counts(spec, fetched, empty, narrowed)
    bundle, tokens, gone = fit(answer.bundle, budget, spec, answer.left_out, counts)
    return msgspec.structs.replace(with_parts(answer, bundle, gone, "token budget"), tokens=tokens)


def fit(
    bundle: bytes, budget: int, spec: ContextSpec, absent: Iterable[str], counts: Counts | None = None
) -> tuple[bytes, int, list[str]]:
    """(bundle, its tokens, sections that had to go, in that order). What is left may still be too much: plain fields
    stay. `absent` are paths of sections that are not in it any more. `counts` (see stored_counts) are of the whole
    bundle: where parts of a section have been left out, they say rather too much."""
    absent = set(absent)
    left = None if counts is None else {path: count for path, count in counts.items() if not is_within(path, absent)}
    tokens = count_tokens(bundle.decode()) if left is None else sum(left.values())
    gone: list[str] = []
    for path in _order(spec, absent):
        if tokens <= budget:
            break
        if any(path.startswith(f"{outer}.") for outer in gone):
            continue
        without = drop(bundle, path)
        if without == bundle:
            continue
        bundle, gone = without, [*gone, path]
        if left is not None:
            left = {inner: count for inner, count in left.items() if not is_within(inner, (path,))}
        tokens = count_tokens(bundle.decode()) if left is None else sum(left.values())
    return bundle, tokens, gone


def stored_counts(
    spec: ContextSpec, fetched: Fetched, empty: Mapping[str, bytes], narrowed: bool = False
) -> dict[str, int] | None:
    """What the bundle and its fragments bring; None where one brings nothing (it was written before the spec named a
    tokenizer), and where words are counted and only some fields are left (`narrowed`): then counting is exact."""
    words = spec.text is None or spec.text.tokenizer in (None, WORDS)
    root = fetched.bundle.meta if fetched.bundle is not None else None
    if root is None or not root.tokens or (words and narrowed):
        return None
    counts = dict(root.tokens)
    for reference in root.fragments:
        fragment = None if reference.key is None else fetched.fragments.get((reference.unit, reference.key))
        if fragment is None or fragment.meta is None:
            nothing = empty[reference.unit]
            # Of other tokenizers only this is known here: a token has a byte at least.
            inside = {"": count_tokens(nothing.decode()) if words else len(nothing) + 1}
        else:
            inside = fragment.meta.tokens
        if not inside:
            return None
        for path, count in inside.items():
            name = path or reference.unit
            counts[name] = counts.get(name, 0) + count
    return counts


def _order(spec: ContextSpec, absent: set[str]) -> Sequence[str]:
    order = least_important_first(spec, spec.text.priorities if spec.text is not None else ())
    return [path for path in order if path not in absent]
