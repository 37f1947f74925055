"""Every object that the chart makes is one that Kubernetes takes, field by field, and every pod is a restricted one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.deploy.rendering import (
    KUBERNETES,
    SCENARIOS,
    Object,
    containers,
    is_hook,
    lint,
    name_of,
    notes,
    of_kind,
    pods,
    render,
    scenario,
)
from tests.deploy.tools import schema

# The oldest version that the chart allows, and the newest whose schema there is.
VERSIONS = (KUBERNETES, kubernetes_validate.latest_version())
CUSTOM = {
    "ScaledObject": "keda.sh_scaledobjects.yaml",
    "TriggerAuthentication": "keda.sh_triggerauthentications.yaml",
    "ServiceMonitor": "monitoring.coreos.com_servicemonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
}
EVERY = pytest.mark.parametrize("name", SCENARIOS)


@functools.cache
def custom_validator(kind: str) -> Any:
    """Of a custom resource, as its definition says, with unknown fields refused."""
    definition = yaml.safe_load(schema(CUSTOM[kind]).read_text())
    (version,) = [each for each in definition["spec"]["versions"] if each["storage"]]
    return jsonschema_rs.validator_for(_closed(version["schema"]["openAPIV3Schema"]))


def _closed(part: Any) -> Any:
    """The same schema with `additionalProperties: false` wherever fields are named; `metadata` is Kubernetes' own."""
    if isinstance(part, list):
        return [_closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {key: _closed(value) for key, value in part.items() if key not in {"format", "metadata"}}
    free = "additionalProperties" in part or part.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(part.get("properties"), dict) and not free:
        closed["properties"] = {key: _closed(value) for key, value in part["properties"].items()}
        closed["additionalProperties"] = False
    return closed


def invalid(each: Object) -> list[str]:
    """What is wrong with an object."""
    if each["kind"] in CUSTOM:
        return [f"{error.instance_path}: {error.message}" for error in custom_validator(each["kind"]).iter_errors(each)]
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            found.append(f"{version}: {error}")
    return found


@EVERY
def test_kubernetes_knows_every_object_and_field(name: str) -> None:
    objects = scenario(name)
    assert objects
    assert {name_of(each): problems for each in objects if (problems := invalid(each))} == {}


def test_the_check_of_objects_finds_unknown_fields_and_wrong_types() -> None:
    objects = scenario("production")
    deployment, scaled = of_kind(objects, "Deployment")[0], of_kind(objects, "ScaledObject")[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    scaled["spec"]["triggers"][0]["metadata"]["target"] = 64
    scaled["spec"]["fallback"]["replica"] = 1
    assert invalid(deployment)
    assert len(invalid(scaled)) == 2


@EVERY
def test_no_two_objects_of_a_kind_share_a_name(name: str) -> None:
    names = [name_of(each) for each in scenario(name)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("files", [(), *SCENARIOS.values()], ids=["defaults", *SCENARIOS])
def test_helm_finds_nothing_to_complain_about(files: tuple[Any, ...]) -> None:
    done = lint(files)
    assert done.returncode == 0, done.stdout + done.stderr


@EVERY
def test_every_object_is_labelled_and_in_the_releases_namespace(name: str) -> None:
    for each in scenario(name, namespace="tasks"):
        labels = each["metadata"]["labels"]
        assert each["metadata"]["namespace"] == "tasks"
        assert labels["app.kubernetes.io/instance"] == "headrace"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/version"]


def _unrestricted(pod: Object) -> list[str]:
    """Rules of the pod security standard "restricted", and ours beyond it, that a pod breaks."""
    spec, found = pod["spec"], []
    security = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"):
        found += [field] if field in spec else []
    found += ["root"] if security.get("runAsNonRoot") is not True else []
    found += (
        ["user"]
        if min(security.get("runAsUser", 0), security.get("runAsGroup", 0), security.get("fsGroup", 0)) == 0
        else []
    )
    found += ["seccomp"] if security.get("seccompProfile") != {"type": "RuntimeDefault"} else []
    found += ["links"] if spec.get("enableServiceLinks") is not False else []
    allowed = {
        "configMap",
        "emptyDir",
        "secret",
        "persistentVolumeClaim",
        "projected",
        "downwardAPI",
        "ephemeral",
        "csi",
    }
    found += [f"volume {v['name']}" for v in spec.get("volumes", []) if not (set(v) - {"name"}) <= allowed]
    for container in containers(pod):
        found += [f"{container['name']}: {problem}" for problem in _unrestricted_container(container)]
    return found


def _unrestricted_container(container: Object) -> list[str]:
    own, found = container.get("securityContext", {}), []
    found += ["escalation"] if own.get("allowPrivilegeEscalation") is not False else []
    found += ["capabilities"] if own.get("capabilities") != {"drop": ["ALL"]} else []
    found += ["writable root"] if own.get("readOnlyRootFilesystem") is not True else []
    found += (
        ["overrides"] if set(own) & {"runAsUser", "runAsNonRoot", "privileged", "seccompProfile", "procMount"} else []
    )
    found += ["host port"] if any("hostPort" in port for port in container.get("ports", [])) else []
    return found


@EVERY
def test_every_pod_is_restricted(name: str) -> None:
    made = pods(scenario(name))
    assert made
    assert {maker: broken for maker, pod in made if (broken := _unrestricted(pod))} == {}


@EVERY
def test_every_container_can_write_to_tmp_and_nowhere_without_a_limit(name: str) -> None:
    for maker, pod in pods(scenario(name)):
        limited = {v["name"] for v in pod["spec"]["volumes"] if "sizeLimit" in v.get("emptyDir", {})}
        for container in containers(pod):
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert mounts["/tmp"] in limited, maker


@EVERY
def test_every_container_asks_for_memory_and_has_a_bound(name: str) -> None:
    for maker, pod in pods(scenario(name)):
        for container in containers(pod):
            assert "memory" in container["resources"]["requests"], maker
            assert "memory" in container["resources"]["limits"], maker


@EVERY
def test_a_token_is_mounted_only_where_deletion_costs_are_set(name: str) -> None:
    objects = scenario(name)
    for maker, pod in pods(objects):
        costs = any(v["name"] == "HEADRACE_POD_DELETION_COST" for c in containers(pod) for v in c.get("env", []))
        assert pod["spec"]["automountServiceAccountToken"] is costs, maker
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_the_right_to_patch_pods_goes_to_the_consumers_that_set_costs_and_to_nobody_else() -> None:
    objects = scenario("production-pools")
    (role,), (binding,) = of_kind(objects, "Role"), of_kind(objects, "RoleBinding")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == ["headrace-consumer-gpu"]
    assert of_kind(scenario("production"), "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding") == []


def test_bundled_servers_keep_their_password_and_their_data_apart_from_the_release() -> None:
    objects = scenario("laptop")
    (secret,) = of_kind(objects, "Secret")
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not is_hook(secret)
    postgres, nats = of_kind(objects, "StatefulSet")[1], of_kind(objects, "StatefulSet")[0]
    (server,) = postgres["spec"]["template"]["spec"]["containers"]
    data = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}["data"]
    pgdata = {each["name"]: each.get("value", "") for each in server["env"]}["PGDATA"]
    assert pgdata.startswith(data + "/")
    assert "args" not in server  # nothing that could switch fsync off
    store = {
        mount["name"]: mount["mountPath"] for mount in nats["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    }
    assert f"--store_dir={store['data']}" in nats["spec"]["template"]["spec"]["containers"][0]["args"]


def test_the_notes_say_how_to_reach_and_to_check_it(tmp_path: Path) -> None:
    printed = notes(SCENARIOS["laptop"], tmp_path)
    assert "HEADRACE_PRODUCER_ADDRESS=dns:///headrace-producer.default:50051" in printed
    assert "helm test headrace" in printed
    assert "for trials" in printed


@pytest.mark.parametrize(
    ("name", "connections"),
    # 10 × 12 + 10 × 8 + 38 × 10 + 10; with one pod of each, surges of 1, 1 and 25 %: 2 × 12 + 2 × 8 + 2 × 10 + 10.
    [("production", 590), ("laptop", 70)],
)
def test_the_notes_say_how_many_connections_it_needs(name: str, connections: int, tmp_path: Path) -> None:
    assert f"it needs {connections} connections to Postgres" in notes(SCENARIOS[name], tmp_path)


@pytest.mark.parametrize(
    ("release", "expected"), [("headrace", "headrace"), ("demo", "demo-headrace"), ("1st", "r-1st-headrace")]
)
def test_objects_are_named_after_the_release(release: str, expected: str) -> None:
    names = {each["metadata"]["name"] for each in of_kind(scenario("laptop", release=release), "Deployment")}
    assert names == {f"{expected}-{service}" for service in ("producer", "status", "consumer")}


def test_a_long_release_name_breaks_no_name_and_no_two_releases_meet() -> None:
    longest = "a" * 52
    pool: Object = {"consumerPools": {"a-name-of-20-letters": {}}}
    first, second = (render(SCENARIOS["laptop"], pool, release=longest + end) for end in "xy")
    assert not {name_of(each) for each in first} & {name_of(each) for each in second}
    for each in first:
        # A Service's, and what becomes a label of pods, where a StatefulSet's gets a hash of ten behind it.
        assert len(each["metadata"]["name"]) <= (52 if each["kind"] == "StatefulSet" else 63), name_of(each)
        assert invalid(each) == []


@pytest.mark.parametrize("name", ["laptop-closed", "names-like-numbers", "hpa"])
def test_a_release_and_a_namespace_may_be_called_like_numbers(name: str) -> None:
    objects = scenario(name, release="1e3", namespace="123")
    assert {name_of(each): problems for each in objects if (problems := invalid(each))} == {}
    assert {each["metadata"]["namespace"] for each in objects} == {"123"}
