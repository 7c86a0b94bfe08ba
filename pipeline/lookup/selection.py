"""The parts of a bundle that a caller asked for; the others are left out. Only what is named is decoded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pipeline.lookup.options import LookupOptions

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER = msgspec.json.Encoder()

Tree = dict[str, Any]
"""Name → the tree of what is wanted below it; empty: all of it."""


def select(bundle: bytes, options: LookupOptions, sections: Iterable[str]) -> tuple[bytes, list[str]]:
    """The bundle with the paths of `options` alone, and the context's `sections` (paths) that are not in it any more.

    Of `sections` each one comes whole, with the bundle's own plain fields beside them unless `fields` are named.
    """
    wanted: list[str] = [*(options.sections or ()), *(options.fields or ())]
    sections = list(sections)
    tree = _tree(wanted)
    plain = options.fields is None
    kept = _keep(msgspec.Raw(bundle), tree, {path for path in sections if "." not in path} if plain else set())
    left_out = [path for path in sections if not _reaches(tree, path.split("."))]
    return _ENCODER.encode(kept), left_out


def drop(bundle: bytes, path: str) -> bytes:
    """The bundle without the section at `path`; in a list, without it in each item."""
    return _ENCODER.encode(_drop(msgspec.Raw(bundle), path.split(".")))


def _drop(value: msgspec.Raw, names: list[str]) -> Any:
    text = bytes(value).lstrip()
    if text.startswith(b"["):
        return [_drop(item, names) for item in _LIST.decode(text)]
    if not text.startswith(b"{"):
        return value
    members = _OBJECT.decode(text)
    if len(names) == 1:
        return {name: inner for name, inner in members.items() if name != names[0]}
    return {name: _drop(inner, names[1:]) if name == names[0] else inner for name, inner in members.items()}


def _tree(paths: Iterable[str]) -> Tree:
    tree: Tree = {}
    whole: set[int] = set()
    for path in sorted(paths, key=lambda path: path.count(".")):
        node = tree
        names = path.split(".")
        for name in names[:-1]:
            if name in node and id(node[name]) in whole:
                break
            node = node.setdefault(name, {})
        else:
            if names[-1] not in node:
                node[names[-1]] = {}
                whole.add(id(node[names[-1]]))
    return tree


def _reaches(tree: Mapping[str, Any], names: list[str]) -> bool:
    """Whether anything at this path is wanted."""
    node: Mapping[str, Any] = tree
    for name in names:
        if name not in node:
            return False
        node = node[name]
        if not node:
            return True
    return True


def _keep(value: msgspec.Raw, tree: Tree, plain_beside: set[str] | None = None) -> Any:
    """`plain_beside`: at the top, everything but these sections stays as well."""
    text = bytes(value).lstrip()
    if text.startswith(b"["):
        return [_keep(item, tree) for item in _LIST.decode(text)]
    if not text.startswith(b"{"):
        return None  # what is wanted would lie in it; the value around that is not
    kept: dict[str, Any] = {}
    for name, inner in _OBJECT.decode(text).items():
        if name in tree:
            kept[name] = _keep(inner, tree[name]) if tree[name] else inner
        elif plain_beside and name not in plain_beside:
            kept[name] = inner
    return kept
