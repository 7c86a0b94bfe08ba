"""What `ctxpipe check` says of history and tokenizers before it asks a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.commands._check_history import check_history, check_tokenizer, cost
from pipeline.core.config import Config
from schemas.context import ContextSpec
from tests.unit.test_flow import SPEC


def config() -> Config:
    return Config.model_validate({"kafka": {"bootstrap_servers": "h:1"}, "redis": {"url": "redis://h:1/0"}})


def spec(**more: Any) -> ContextSpec:
    return ContextSpec.model_validate({**SPEC, **more})


def test_the_cost_is_told_in_writes_and_bytes() -> None:
    told = cost(8_640_000, 1_000.0, 3_600)
    assert told == (
        "at the 100 writes/s of the last day (at least) and 1,000 bytes each, a day adds 8.64 GB and 360 MB lie there "
        "at once"
    )


@pytest.mark.parametrize(
    ("writes", "size", "lacking"), [(None, 5.0, "changes per second"), (5.0, None, "bytes per bundle")]
)
def test_what_was_not_measured_is_unknown(writes: float | None, size: float | None, lacking: str) -> None:
    assert f"what that costs is unknown ({lacking} could not be measured)" in cost(writes, size, 5)


async def test_history_is_a_note_and_nothing_where_there_is_none() -> None:
    assert await check_history(config(), spec(), {}, kafka=False, redis=False) == []
    (found,) = await check_history(config(), spec(history={"retention_s": 9000}), {}, kafka=False, redis=False)
    assert found.severity == "note" and found.message.startswith("former bundles are kept for 9,000 s; what that costs")


def test_a_tokenizer_is_fit_or_not(tmp_path: Path) -> None:
    def text(tokenizer: str | None) -> ContextSpec:
        return spec(text={"template": "{{ id }}", "tokenizer": tokenizer})

    assert check_tokenizer(config(), text(None)) == []
    assert [found.severity for found in check_tokenizer(config(), text("words"))] == ["ok"]
    (found,) = check_tokenizer(config(), text(str(tmp_path / "nowhere.json")))
    assert found.severity == "unfit" and "there is no file" in found.message
