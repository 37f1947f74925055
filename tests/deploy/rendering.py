"""What the chart renders: `helm template`, parsed. Cached, since the same render serves many tests."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import ROOT, tool

CHART = ROOT / "deploy" / "helm" / "headrace"
VALUES = Path(__file__).parent / "chart_values"
LAPTOP, PRODUCTION = CHART / "values-laptop.yaml", CHART / "values-production.yaml"
# The oldest version that the chart allows.
KUBERNETES = "1.30.0"

Object = dict[str, Any]

SCENARIOS: dict[str, tuple[Path, ...]] = {
    "laptop": (LAPTOP,),
    "laptop-closed": (LAPTOP, VALUES / "closed.yaml"),
    "laptop-without-broker": (LAPTOP, VALUES / "closed.yaml", VALUES / "without-broker.yaml"),
    "production": (PRODUCTION,),
    "production-pools": (PRODUCTION, VALUES / "pools.yaml"),
    "inline": (VALUES / "inline.yaml",),
    "external-without-broker": (VALUES / "inline.yaml", VALUES / "without-broker.yaml"),
    "only-nats-bundled": (VALUES / "only-nats-bundled.yaml",),
    "only-postgres-bundled": (VALUES / "only-postgres-bundled.yaml",),
    "hpa": (VALUES / "inline.yaml", VALUES / "hpa.yaml"),
    "everything": (VALUES / "inline.yaml", VALUES / "everything.yaml"),
    "laptop-tls": (LAPTOP, VALUES / "closed.yaml", VALUES / "tls.yaml"),
    "production-mutual-tls": (PRODUCTION, VALUES / "mutual-tls.yaml"),
    "names-like-numbers": (VALUES / "names-like-numbers.yaml",),
}
"""Sets of values that together switch on everything there is, by name."""


def render(
    values_files: Sequence[Path] = (),
    sets: Mapping[str, Any] | None = None,
    release: str = "headrace",
    namespace: str = "default",
) -> list[Object]:
    """The objects of a release, hooks and the test included. `sets`: dotted paths in the values to their values.

    Raises AssertionError with Helm's message where it refuses.
    """
    done = _template(tuple(values_files), json.dumps(sets or {}), release, namespace)
    assert done.returncode == 0, done.stderr
    return copy.deepcopy(_parsed(done.stdout))


def refusal(values_files: Sequence[Path] = (), sets: Mapping[str, Any] | None = None, release: str = "headrace") -> str:
    """What Helm says about values that it refuses; empty where it does not."""
    done = _template(tuple(values_files), json.dumps(sets or {}), release, "default")
    return done.stderr if done.returncode else ""


def scenario(name: str, release: str = "headrace", namespace: str = "default") -> list[Object]:
    """The objects of one of SCENARIOS."""
    return render(SCENARIOS[name], release=release, namespace=namespace)


def lint(values_files: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """`helm lint --strict`."""
    return _helm("lint", str(CHART), "--strict", "--kube-version", KUBERNETES, *_values_words(values_files))


def notes(values_files: Sequence[Path], folder: Path) -> str:
    """What is printed after an installation. `folder`: an empty one for a copy of the chart.

    Helm prints it after a real installation only; in the copy it is a template like the others.
    """
    copied = folder / "headrace"
    shutil.copytree(CHART, copied)
    text = (copied / "templates" / "NOTES.txt").read_text()
    (copied / "templates" / "_notes.tpl").write_text('{{- define "notes" -}}' + text + "{{- end -}}")
    (copied / "templates" / "notes.yaml").write_text('notes: {{ include "notes" . | toJson }}')
    words = ("--show-only", "templates/notes.yaml", "--kube-version", KUBERNETES, *_values_words(values_files))
    done = _helm("template", "headrace", str(copied), *words)
    assert done.returncode == 0, done.stderr
    return str(yaml.safe_load(done.stdout)["notes"])


def one(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The only object of that kind and name."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    """Every object of these kinds."""
    return [each for each in objects if each["kind"] in kinds]


def pod_of(each: Object) -> Object | None:
    """The pod, metadata and spec, that an object makes; None for one that makes none."""
    if each["kind"] == "Pod":
        return each
    if each["kind"] in {"Deployment", "StatefulSet", "Job"}:
        template: Object = each["spec"]["template"]
        return template
    return None


def pods(objects: Sequence[Object]) -> list[tuple[str, Object]]:
    """Every pod, with the name of what makes it."""
    return [(name_of(each), pod) for each in objects if (pod := pod_of(each)) is not None]


def containers(pod: Object) -> list[Object]:
    """A pod's containers, the initial ones first."""
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def name_of(each: Object) -> str:
    """`Kind/name`."""
    return f"{each['kind']}/{each['metadata']['name']}"


def is_hook(each: Object) -> bool:
    """Whether Helm creates it apart from the release's ordinary objects."""
    return "helm.sh/hook" in each["metadata"].get("annotations", {})


def _parsed(text: str) -> list[Object]:
    return [each for each in _documents(text) if each is not None]


@functools.cache
def _documents(text: str) -> list[Object | None]:
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@functools.cache
def _template(
    values_files: tuple[Path, ...], sets: str, release: str, namespace: str
) -> subprocess.CompletedProcess[str]:
    words = _values_words(values_files)
    for path, value in json.loads(sets).items():
        words += ["--set-json", f"{path}={json.dumps(value)}"]
    return _helm("template", release, str(CHART), "--namespace", namespace, "--kube-version", KUBERNETES, *words)


def _values_words(values_files: Sequence[Path]) -> list[str]:
    return [word for path in values_files for word in ("--values", str(path))]


def _helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("helm"), *words], capture_output=True, text=True, timeout=30, check=False)
