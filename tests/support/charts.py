"""The chart as Helm renders it, and what its objects are checked against."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from deploy.local.helm import helm_program, schemas

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "ctxpipe"
VALUES = CHART / "ci"
KUBERNETES = ("1.30.0", "1.34.0", "1.37.0")
"""Of the first that the chart takes, to the newest that there are schemas of."""
CUSTOM = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
}
POD_OWNERS = ("Deployment", "StatefulSet")


class Refused(Exception):
    """What Helm said."""


def helm(*words: str) -> str:
    """Raises Refused with its message; lines about our links to the rules and dashboards left out."""
    done = subprocess.run([helm_program(), *words], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        told = [line for line in (done.stdout + done.stderr).splitlines() if "symbolic link" not in line]
        raise Refused("\n".join(told))
    return done.stdout


def rendered(*words: str, chart: Path = CHART, kubernetes: str = KUBERNETES[1]) -> list[dict[str, Any]]:
    """All objects of a release `live` in the namespace `contexts`."""
    text = helm("template", "live", str(chart), "-n", "contexts", "--kube-version", kubernetes, *words)
    return [one for one in yaml.safe_load_all(text) if one]


def named(objects: Sequence[Mapping[str, Any]], kind: str, name: str) -> Mapping[str, Any]:
    found = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} × {kind} {name}"
    return found[0]


def pods(objects: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name of the object, its pod template), those of `helm test` too."""
    for one in objects:
        if one["kind"] in POD_OWNERS:
            yield one["metadata"]["name"], one["spec"]["template"]
        elif one["kind"] == "Pod":
            yield one["metadata"]["name"], one


def mistakes(one: Mapping[str, Any], kubernetes: str) -> list[str]:
    """What is wrong with an object by the schema of its kind; unknown fields are, too."""
    if one["kind"] in CUSTOM:
        found = jsonschema.Draft202012Validator(_custom_schema(one["kind"])).iter_errors(dict(one))
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in found]
    library = _library()
    try:
        library.validate(dict(one), kubernetes, strict=True)
    except library.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"]
    return []


@cache
def _library() -> Any:
    _make_importable()
    import kubernetes_validate
    from kubernetes_validate import utils

    utils.schema_contents = cache(utils.schema_contents)  # it would read a megabyte for each object
    return kubernetes_validate


@cache
def _custom_schema(kind: str) -> Any:
    """Of a custom resource, closed: the models would let unknown fields pass."""
    from importlib import import_module

    _make_importable()
    model = getattr(import_module(CUSTOM[kind]), kind)
    schema = model.model_json_schema(by_alias=True)
    for part in (schema, *schema.get("$defs", {}).values()):
        if part.get("properties") and "metadata" not in part.get("title", "").lower():
            part.setdefault("additionalProperties", False)
    return schema


def _make_importable() -> None:
    folder = str(schemas())
    if folder not in sys.path:
        sys.path.append(folder)
