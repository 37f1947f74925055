"""What an operator asks of the pods: the command line, the step after a restore, consumers without built-in kinds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rendering import SCENARIOS, Object, of_kind, pods, render, scenario
from tests.deploy.test_chart_environment import environment, services, settings
from tests.deploy.tools import ROOT

RESTORED = {"prepare.restored": True}


def steps(objects: list[Object]) -> list[list[str]]:
    """The commands of the preparing job, in their order, without options."""
    (job,) = of_kind(objects, "Job")
    spec = job["spec"]["template"]["spec"]
    return [each["command"][:3] for each in [*spec.get("initContainers", []), *spec["containers"]]]


@pytest.mark.parametrize("name", ["production", "laptop", "external-without-broker"])
def test_the_epochs_are_raised_after_the_schema_and_only_when_that_is_asked_for(name: str) -> None:
    migrate, restored = ["headrace", "db", "migrate"], ["headrace", "db", "restored"]
    rest = [] if name == "external-without-broker" else [["headrace", "topology", "apply"]]
    assert steps(scenario(name)) == [migrate, *rest]
    assert steps(render(SCENARIOS[name], RESTORED)) == [migrate, restored, *rest]


def test_the_epochs_are_raised_with_the_rights_of_whoever_migrates() -> None:
    (job,) = of_kind(render(SCENARIOS["production"], RESTORED), "Job")
    migrate, restored = job["spec"]["template"]["spec"]["initContainers"]
    assert restored["env"] == migrate["env"]


def test_the_short_commands_run_where_the_values_say() -> None:
    found = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for _, pod in pods(scenario("everything"))}
    for component in ("prepare", "verify"):
        spec = found[component]["spec"]
        assert spec["nodeSelector"] == {"disk": "ssd"}
        assert [each["key"] for each in spec["tolerations"]] == ["dedicated"]
    assert "nodeSelector" not in found["consumer"]["spec"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_command_line_in_a_service_finds_the_services(name: str) -> None:
    objects = scenario(name)
    names = {each["metadata"]["name"] for each in of_kind(objects, "Service")}
    for pod, container in services(objects):
        found = environment(container, pod, objects)
        for variable, port in (("HEADRACE_PRODUCER_ADDRESS", "50051"), ("HEADRACE_STATUS_ADDRESS", "50052")):
            service, _, its_port = found[variable].removeprefix("dns:///").partition(":")
            assert (service in names, its_port) == (True, port)


def test_the_example_of_a_pool_starts_nothing_but_itself(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "consumerPools" in block]
    (tmp_path / "pool.yaml").write_text(example)
    scaled = of_kind(render([*SCENARIOS["production"], tmp_path / "pool.yaml"]), "ScaledObject")
    asked = {
        each["metadata"]["labels"]["headrace/pool"]: {
            (trigger["metadata"]["metric"], trigger["metadata"]["queues"]) for trigger in each["spec"]["triggers"]
        }
        for each in scaled
    }
    assert asked == {"default": {("work", "default"), ("oldest-age", "default")}, "gpu": {("work", "vision")}}


def test_the_built_in_kinds_are_switched_off_by_pool(tmp_path: Path) -> None:
    objects = scenario("production-pools")
    found: dict[str, Any] = {}
    for pod, container in services(objects):
        if container["name"] == "consumer":
            found[pod["metadata"]["labels"]["headrace/pool"]] = settings(container, pod, objects, tmp_path).built_in
    assert found == {"default": True, "gpu": False, "idle": True, "steady": True}
