"""What makes less of a bundle before somebody gets it: the same steps, in the same order, for a lookup and for an id
that leads back to its bytes. Pure."""

from __future__ import annotations

from pipeline.lookup.answer import Answer, with_parts
from pipeline.lookup.bundle_ids import Shape
from pipeline.lookup.narrowing import narrowed_to
from pipeline.lookup.selection import select
from pipeline.lookup.served import ServedContext
from pipeline.lookup.token_budget import within_budget
from pipeline.stores.store import Fetched


def shaped(answer: Answer, shape: Shape, served: ServedContext, fetched: Fetched) -> Answer:
    """Without what the credential does not show, what was not asked for and what is too much, in this order. A default
    bundle is the spec's own: of it, everything that may be shown is given."""
    if shape.allowed is not None:
        answer = narrowed_to(answer, served.section_sources, shape.allowed)
    options = shape.options
    if options.selects and answer.bundle is not None and answer.status != "fallback":
        bundle, without = select(answer.bundle, options, served.section_sources)
        answer = with_parts(answer, bundle, without, "not asked for")
    if shape.token_budget is not None:
        partly = shape.allowed is not None or shape.fields is not None
        answer = within_budget(answer, shape.token_budget, served.spec, fetched, served.empty, partly)
    return answer
