"""What of an answer somebody may see: fields of a bundle that a credential does not name are left out. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from pipeline.core.errors import CtxpipeError
from pipeline.lookup.answer import Answer, is_within, with_parts
from pipeline.lookup.options import LookupOptions
from pipeline.lookup.principal import Principal
from pipeline.lookup.search_answer import SearchHit
from pipeline.lookup.selection import select
from pipeline.stores.spaces import Condition
from schemas.context import ContextSpec

NOT_ALLOWED = "not allowed"


class NotAllowed(CtxpipeError):
    """A credential that is good, but not for this; the text is fit for the caller."""


def narrowed(answer: Answer, sections: Collection[str], principal: Principal) -> Answer:
    """With the allowed paths of the bundle alone; `sections` are the paths of all sections of the context."""
    paths = principal.fields.get(answer.context)
    return answer if paths is None else narrowed_to(answer, sections, paths)


def narrowed_to(answer: Answer, sections: Collection[str], paths: tuple[str, ...]) -> Answer:
    """With these paths of the bundle alone."""
    if answer.bundle is None:
        return answer
    bundle, without = select(answer.bundle, LookupOptions(fields=paths), sections)
    return with_parts(answer, bundle, without, NOT_ALLOWED)


def search_conditions(
    principal: Principal, spec: ContextSpec, marked: Sequence[str], conditions: Sequence[Condition]
) -> tuple[Condition, ...]:
    """The caller's conditions and, where tenants are kept apart, the one that finds this tenant's bundles alone.

    Raises NotAllowed for a condition on a field that is not shown, since its hits would tell the field's value, and
    where the space has no field that names the tenant, since ranks among other tenants' bundles would tell of them.
    """
    paths = principal.fields.get(spec.context)
    for condition in conditions:
        if paths is not None and not is_within(condition.field, paths):
            raise NotAllowed(f"filter: this credential does not show {condition.field}")
    tenant = principal.tenant_in(spec)
    if tenant is None:
        return tuple(conditions)
    path = tenant_filter(spec, marked)
    if path is None:
        raise NotAllowed(f"searches of {spec.context} can't keep tenants apart: its embedding marks no tenant")
    values: list[str | int | float | bool | None] = [tenant]
    if tenant.isascii() and tenant.isdigit() and str(int(tenant)) == tenant:
        values.append(int(tenant))
    return (*conditions, Condition(path, "in", values))


def tenant_filter(spec: ContextSpec, marked: Sequence[str]) -> str | None:
    """The marked field of the bundle that is the tenant's column, as it is."""
    plain = {field.name for field in spec.fields if field.column == spec.tenant and field.mask is None}
    return next((path for path in marked if path in plain), None)


def shown_hits(
    hits: Sequence[SearchHit], sections: Collection[str], principal: Principal, context: str
) -> list[SearchHit]:
    """Texts are made from all of a bundle: who may see parts of it only gets the place, not the words."""
    if context not in principal.fields:
        return list(hits)
    shown = []
    for hit in hits:
        passage = hit.passage and msgspec.structs.replace(hit.passage, text=None)
        answer = narrowed(hit.answer, sections, principal)
        shown.append(msgspec.structs.replace(hit, passage=passage, answer=answer))
    return shown
