"""What `ctxpipe check` says of contexts without asking any server."""

from __future__ import annotations

from pipeline.commands.check import _check_decimals
from schemas.context import ContextSpec


def test_a_decimal_that_may_be_base64_or_text_is_named_with_its_remedy() -> None:
    """Debezium's base64 of a whole number looks like its text: what the wire holds, only its owner knows."""
    types = {"whole": "decimal(12,0)", "cents": "decimal(12,2)", "any": "decimal", "other": "numeric( 9, 0 )"}
    entities = {
        source: {"source": source, "table": "public.t", "key": ["id"], "types": types} for source in ("own", "theirs")
    }
    spec = ContextSpec.model_validate(
        {"context": "c", "version": 1, "root": "own", "fields": ["id"], "entities": entities}
    )
    found = _check_decimals(spec, {"own"})
    assert [finding.subject for finding in found] == ["context c: public.t.whole", "context c: public.t.other"]
    assert {finding.severity for finding in found} == {"note"}
    assert "decimal(12,0)" in found[0].message and "entity theirs as decimal" in found[0].mend
