"""Packages that only some engines need: missing ones are named with the extra that brings them."""

from __future__ import annotations

import importlib.util

from pipeline.core.errors import EnvironmentProblem

_EXTRAS = {
    "numpy": "search",
    "onnxruntime": "search",
    "tokenizers": "search",
    "httpx": "search",
    "torch": "embedding",
    "sentence_transformers": "embedding",
    "onnx": "embedding",
    "onnxscript": "embedding",
}


def require(*packages: str) -> None:
    """Raises EnvironmentProblem for the packages that are not installed. Imports nothing."""
    missing = [package for package in packages if not _installed(package)]
    if missing:
        extra = "embedding" if any(_EXTRAS[package] == "embedding" for package in missing) else "search"
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise EnvironmentProblem(f"{names} is not installed, which this engine needs: pip install 'ctxpipe[{extra}]'")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
