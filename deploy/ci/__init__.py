"""The evaluation gate in the pipelines of others: a workflow for GitHub, a template for GitLab, and their schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
GITHUB, GITLAB = FOLDER / "github-eval-gate.yml", FOLDER / "gitlab-eval-gate.yml"
_PACKAGES = FOLDER / "schemas.txt"


def schemas() -> dict[Path, Any]:
    """The JSON Schema of each of both files. Raises EnvironmentProblem where they can't be fetched."""
    from deploy.local.helm import digest_of, install_packages, kept  # only tests need it, and commands import this

    def fetch(folder: Path) -> None:
        install_packages(_PACKAGES, folder)

    vendored = kept(f"ci-schemas-{digest_of(_PACKAGES)}", fetch) / "check_jsonschema" / "builtin_schemas" / "vendor"
    names = {GITHUB: "github-workflows.json", GITLAB: "gitlab-ci.json"}
    return {file: json.loads((vendored / name).read_text(encoding="utf-8")) for file, name in names.items()}
