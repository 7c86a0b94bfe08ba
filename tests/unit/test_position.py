"""Position tokens: what they hold survives the way, everything else is refused with one clear sentence."""

from __future__ import annotations

import base64

import pytest

from schemas.errors import DecodeError
from schemas.position import SourcePosition, lsn_of, lsn_text, position_of, token_of, token_of_lsn, token_of_write_time


@pytest.mark.parametrize(
    "position",
    [
        SourcePosition("shop", "lsn", 0, ""),
        SourcePosition("shop", "lsn", (1 << 64) - 1, "7412345678901234567"),
        SourcePosition("a" * 40, "time", 1_767_323_045_678_901),
        SourcePosition("größe", "lsn", 17),
    ],
)
def test_a_token_holds_its_position(position: SourcePosition) -> None:
    token = token_of(position)
    assert position_of(token) == position
    assert token.replace("-", "").replace("_", "").isalnum() and "=" not in token


def test_tokens_of_writes() -> None:
    assert position_of(token_of_lsn("shop", "16/B374D848", "7")) == SourcePosition("shop", "lsn", 0x16B374D848, "7")
    assert position_of(token_of_lsn("shop", 5)).value == 5
    assert position_of(token_of_write_time("iot", 123)) == SourcePosition("iot", "time", 123)


@pytest.mark.parametrize("token", ["", "x", "é", "A" * 500, "not/base64!", "AAAA", token_of_lsn("shop", 7)[:-3]])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(DecodeError, match=r"is (no position|a position of another release)"):
        position_of(token)


def test_a_changed_token_is_refused() -> None:
    content = bytearray(base64.urlsafe_b64decode(token_of_lsn("shops", 70_000) + "=="))
    for place in range(len(content)):
        changed = bytes(content[:place]) + bytes([content[place] ^ 1]) + bytes(content[place + 1 :])
        with pytest.raises(DecodeError):
            position_of(base64.urlsafe_b64encode(changed).decode().rstrip("="))


def test_log_positions_as_text() -> None:
    assert lsn_of("0/307E738") == 50849592 == lsn_of("50849592") and lsn_text(50849592) == "0/307E738"
    for text in ("", "0/", "g/1", "1/123456789", "99999999999999999999", "-1"):
        with pytest.raises(DecodeError):
            lsn_of(text)
