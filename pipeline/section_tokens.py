"""How many tokens each section of a unit has: its body is cut where sections begin and end. Pure."""

from __future__ import annotations

from collections.abc import Callable


class SectionMarks:
    """Where in a body which section's part begins. A part is the section's own: its name, its braces and its fields."""

    def __init__(self, path: str) -> None:
        """`path` of the unit itself, whose own parts are counted under ""."""
        self._path = path
        self._marks: list[tuple[int, str]] = [(0, path)]

    def begin(self, offset: int, path: str) -> None:
        """From this byte on, what is written belongs to the section at `path`."""
        self._marks.append((offset, path))

    def counted(self, body: bytes, count: Callable[[str], int]) -> dict[str, int]:
        """Tokens by path. All cuts lie before or behind a brace, a comma or a colon of JSON."""
        tokens: dict[str, int] = {}
        ends = [offset for offset, _ in self._marks[1:]]
        for (start, path), end in zip(self._marks, [*ends, len(body)], strict=True):
            if end > start:
                name = "" if path == self._path else path
                tokens[name] = tokens.get(name, 0) + count(body[start:end].decode())
        return tokens
