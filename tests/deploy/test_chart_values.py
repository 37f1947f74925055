"""The values: what is misspelt or of another kind is refused, and each value says what it means."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.deploy.rendering import CHART, SCENARIOS, refusal, render

Path = tuple[str, ...]
# Maps whose keys are the user's.
FREE = {
    "commonLabels",
    "podAnnotations",
    "podLabels",
    "nodeSelector",
    "affinity",
    "annotations",
    "labels",
    "requests",
    "limits",
    "matchLabels",
    "consumerPools",
}


@functools.cache
def text() -> str:
    return (CHART / "values.yaml").read_text()


@functools.cache
def parsed() -> Any:
    return yaml.safe_load(text())


def values() -> dict[str, Any]:
    """A copy of the defaults."""
    found: dict[str, Any] = copy.deepcopy(parsed())
    return found


@functools.cache
def validator() -> Any:
    return jsonschema_rs.validator_for(json.loads((CHART / "values.schema.json").read_text()))


def paths(part: Any, at: Path = ()) -> Iterator[Path]:
    """The path of every value that the chart knows, down to the user's own keys and lists."""
    for key, value in part.items():
        yield (*at, key)
        if isinstance(value, dict) and key not in FREE:
            yield from paths(value, (*at, key))


def changed(path: Path, change: Any) -> dict[str, Any]:
    """The default values with `change` made to the map that holds the last key of a path."""
    found = values()
    part = found
    for key in path[:-1]:
        part = part[key]
    change(part, path[-1])
    return found


def misspell(part: dict[str, Any], key: str) -> None:
    part[key + "x"] = part.pop(key)


PATHS = sorted(paths(values()))
LEAVES = [path for path in PATHS if not any(other[: len(path)] == path and other != path for other in PATHS)]


def test_the_defaults_and_every_scenario_fit_the_schema() -> None:
    assert validator().is_valid(values())
    for files in SCENARIOS.values():
        for file in files:
            assert [error.message for error in validator().iter_errors(yaml.safe_load(file.read_text()))] == []


def accepted(change: Any) -> list[str]:
    """The paths at which the schema accepts the change."""
    return [".".join(path) for path in PATHS if validator().is_valid(changed(path, change))]


def test_a_misspelt_value_is_refused_wherever_it_is() -> None:
    assert len(PATHS) > 200
    assert accepted(misspell) == []


def test_a_value_of_another_kind_is_refused() -> None:
    def list_or_map(part: dict[str, Any], key: str) -> None:
        part[key] = ["x"] if not isinstance(part[key], list) else {"x": ["x"]}

    def map_or_text(part: dict[str, Any], key: str) -> None:
        part[key] = "text" if isinstance(part[key], dict) else {"nobody": {"knows": "this"}}

    assert accepted(list_or_map) == []
    assert accepted(map_or_text) == []


@pytest.mark.parametrize(
    "sets",
    [
        {"broker": "rabbit"},
        {"image.pullPolicy": "Sometimes"},
        {"image.digest": "sha256:12"},
        {"image.repository": "headrace@sha256"},
        {"database.url": "mysql://x"},
        {"nats.url": "http://x"},
        {"nats.streamReplicas": 2},
        {"log.level": "loud"},
        {"retention.days": 0.01},
        {"retention.share": 0},
        {"ai.baseUrl": "models:8000"},
        {"ai.timeoutSeconds": 0},
        {"producer.replicas": -1},
        {"producer.replicas": 1.5},
        {"producer.graceSeconds": 3601},
        {"producer.autoscaling.mode": "keda"},
        {"consumer.autoscaling.mode": "on"},
        {"consumer.autoscaling.maxReplicas": 0},
        {"consumer.autoscaling.targetWork": 0},
        {"consumer.autoscaling.queues": ["Images"]},
        {"consumer.handlers": ["my-module"]},
        {"consumer.resources": {"request": {}}},
        {"consumer.resources": {"requests": {"memory": "1 GB"}}},
        {"consumer.podDisruptionBudget.maxUnavailable": 0},
        {"consumer.podDisruptionBudget.maxUnavailable": "0%"},
        {"consumer.topologySpread.whenUnsatisfiable": "Maybe"},
        {"consumer.extraEnv": [{"name": "A", "val": "b"}]},
        {"consumer.extraEnv": [{"name": "A", "value": 1}]},
        {"consumer.extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
        {"consumerPools": {"default": {}}},
        {"consumerPools": {"GPU": {}}},
        {"consumerPools": {"a-name-of-more-than-20": {}}},
        {"consumerPools": {"gpu": {"replica": 1}}},
        {"consumerPools": {"gpu": {"maxConnectionAgeSeconds": 1}}},
        {"networkPolicy.clients": [{"podselector": {}}]},
        {"networkPolicy.clients": [{}]},
        {"networkPolicy.database.ports": []},
        {"networkPolicy.consumerEgress": [{"ports": [{"portt": 1}]}]},
        {"monitoring.serviceMonitor.interval": 30},
        {"imagePullSecrets": ["registry"]},
        {"imagePullSecrets": [{"name": ["registry"]}]},
        {"bundled.postgres.persistence.size": "8 GB"},
        {"database.existingSecret.name": "Our_Secret"},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(sets: dict[str, Any]) -> None:
    ((dotted, value),) = sets.items()

    def put(part: dict[str, Any], key: str) -> None:
        part[key] = value

    assert not validator().is_valid(changed(tuple(dotted.split(".")), put))


def test_helm_asks_the_schema_and_says_where() -> None:
    said = refusal(SCENARIOS["laptop"], {"consumer.autoscaling.maxReplica": 3})
    assert "maxReplica" in said
    assert "consumer/autoscaling" in said.replace(".", "/")
    assert "consumerPools" in refusal(SCENARIOS["laptop"], {"consumerPools": {"gpu": {"replicass": 3}}})


def test_the_chart_may_be_part_of_another() -> None:
    """Helm then adds `global`."""
    assert render(SCENARIOS["laptop"], {"global": {"any": "thing"}})


def test_every_value_has_a_comment_right_above_it() -> None:
    """Or on the map that holds it, where that is a list or a map of Kubernetes' own, written on one line."""
    lines = text().splitlines()
    explained = {
        match.group(2)
        for above, line in itertools.pairwise(lines)
        if (match := re.match(r"^(\s*)([A-Za-z]+):", line)) and above.strip().startswith("#")
    }
    whole = {
        "bundled",
        "postgres",
        "nats",
        "requests",
        "limits",
    }  # headed by their comments, or explained by their parts
    assert {path[-1] for path in PATHS} - explained - whole == set()
    bare = [
        line
        for above, line in itertools.pairwise(lines)
        if re.match(r"^\s*[A-Za-z]+:", line)
        and not above.strip().startswith("#")
        and line.split(":")[0].strip() not in whole
    ]
    assert bare == []


def test_every_value_is_used_by_a_template() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    unused = [path for path in LEAVES if not re.search(rf"[.$\" ]{path[-1]}\b", templates)]
    passed_on = {"maxSurge", "maxUnavailable", "requests", "limits"}  # maps that are Kubernetes' own
    assert {path[-1] for path in unused} - passed_on == set()
