"""What the pods run and are told: commands that exist, variables that services know and accept, periods that fit."""

from __future__ import annotations

import base64
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import headrace
from headrace.cli.entry import build_app
from headrace_core.runtime.run import DRAIN_MARGIN_SECONDS, LEAVE_SECONDS, START_SECONDS, STOP_SECONDS
from headrace_core.settings.environment import PREFIX, VARIABLES, ServiceSettings, load_settings
from tests.deploy.rendering import (
    CHART,
    SCENARIOS,
    Object,
    containers,
    of_kind,
    one,
    pods,
    refusal,
    render,
    scenario,
)

EVERY = pytest.mark.parametrize("name", SCENARIOS)
SERVICES = {"producer": 50051, "status": 50052, "consumer": 50053}
# What the existing Secrets and ConfigMaps of the scenarios hold, by the variable that they become.
OUTSIDE = {
    "HEADRACE_DATABASE_URL": "postgresql://headrace@postgres.example:5432/headrace",
    "HEADRACE_NATS_URL": "nats://nats.example:4222",
    "HEADRACE_AI_API_KEY": "key",
}


def environment(container: Object, pod: Object, objects: list[Object]) -> dict[str, str]:
    """A container's environment, resolved as a kubelet would."""
    return {each["name"]: _value(each, pod, objects) for each in container.get("env", [])}


def _value(variable: Object, pod: Object, objects: list[Object]) -> str:
    if "valueFrom" not in variable:
        return str(variable.get("value", ""))
    source = variable["valueFrom"]
    if "fieldRef" in source:
        field = {"metadata.name": "headrace-pod-1", "metadata.namespace": "default"}
        return field[source["fieldRef"]["fieldPath"]]
    if secret := source.get("secretKeyRef"):
        for each in of_kind(objects, "Secret"):
            if each["metadata"]["name"] == secret["name"]:
                return base64.b64decode(each["data"][secret["key"]]).decode()
    return OUTSIDE.get(variable["name"], "elsewhere")


def settings(container: Object, pod: Object, objects: list[Object], folder: Path) -> ServiceSettings:
    """The settings of a container of our image, with its headrace.toml in `folder`."""
    environ = environment(container, pod, objects)
    if "HEADRACE_CONFIG" in environ:
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        (config,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "config"]
        (file,) = one(objects, "ConfigMap", config["configMap"]["name"])["data"].items()
        assert environ["HEADRACE_CONFIG"] == f"{mounted['config']}/{file[0]}"
        (folder / file[0]).write_text(file[1])
        environ["HEADRACE_CONFIG"] = str(folder / file[0])
    return load_settings(environ, default_listen="127.0.0.1:0", cwd=folder)


def ours(objects: list[Object]) -> list[tuple[str, Object, Object]]:
    """Every container of the Headrace image: maker, pod, container."""
    made = [(maker, pod, container) for maker, pod in pods(objects) for container in containers(pod)]
    return [each for each in made if each[2]["name"] not in {"postgres", "nats"}]


def services(objects: list[Object]) -> list[tuple[Object, Object]]:
    """Pod and container of each service and pool."""
    return [(pod, container) for _, pod, container in ours(objects) if container["name"] in SERVICES]


@EVERY
def test_services_know_every_variable_and_accept_every_value(name: str, tmp_path: Path) -> None:
    objects = scenario(name)
    for maker, pod, container in ours(objects):
        given = {variable["name"] for variable in container.get("env", []) if variable["name"].startswith(PREFIX)}
        assert given <= set(VARIABLES), maker
        settings(container, pod, objects, tmp_path)


@EVERY
def test_no_variable_is_set_twice_but_by_the_user(name: str) -> None:
    for maker, _, container in ours(scenario(name)):
        names = [variable["name"] for variable in container.get("env", [])]
        repeated = {each for each in names if names.count(each) > 1}
        assert repeated <= ({"HEADRACE_LOG_LEVEL"} if name == "everything" else set()), maker


@EVERY
def test_services_listen_where_their_ports_say(name: str, tmp_path: Path) -> None:
    objects = scenario(name)
    host = "[::]" if name == "everything" else "0.0.0.0"
    for pod, container in services(objects):
        found = settings(container, pod, objects, tmp_path)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["grpc"] == SERVICES[container["name"]]
        assert found.listen == f"{host}:{ports['grpc']}"
        assert found.ops_listen == f"{host}:{ports['ops']}"
        if container["name"] == "status":
            assert found.http_listen == f"{host}:{ports['http']}"


@EVERY
def test_the_pods_grace_period_holds_all_that_a_stop_may_take(name: str, tmp_path: Path) -> None:
    objects = scenario(name)
    for pod, container in services(objects):
        found = settings(container, pod, objects, tmp_path)
        sleep = container.get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})["preStop"]["sleep"]["seconds"]
        needed = sleep + found.grace_seconds + DRAIN_MARGIN_SECONDS + STOP_SECONDS + LEAVE_SECONDS
        assert needed <= pod["spec"]["terminationGracePeriodSeconds"] <= needed + 10
        assert found.finish_seconds <= found.grace_seconds


@EVERY
def test_a_start_is_given_up_by_the_service_before_kubernetes_does(name: str) -> None:
    for _, container in services(scenario(name)):
        probe = container["startupProbe"]
        assert START_SECONDS + STOP_SECONDS <= probe["periodSeconds"] * probe["failureThreshold"] <= 180


@EVERY
def test_pods_wait_before_sigterm_unless_they_are_told_not_to(name: str) -> None:
    without = {
        "everything": {"headrace-producer", "our-tasks-producer"},
        "production-pools": {"headrace-consumer-steady"},
    }
    for each in of_kind(scenario(name), "Deployment"):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        waits = {"preStop": {"sleep": {"seconds": 5}}}
        expected = None if each["metadata"]["name"] in without.get(name, set()) else waits
        assert container.get("lifecycle") == expected


def test_values_reach_the_services(tmp_path: Path) -> None:
    objects = scenario("everything")
    found = {container["name"]: settings(container, pod, objects, tmp_path) for pod, container in services(objects)}
    producer, status, consumer = found["producer"], found["status"], found["consumer"]
    assert producer.database_url == "postgresql://headrace:secret@postgres.example:5432/headrace?sslmode=require"
    assert producer.nats_url == "nats://one.example:4222,nats://two.example:4222"
    assert (producer.retention_days, producer.retention_events_days, producer.retention_share) == (0, 0.05, 0.5)
    assert (producer.max_connection_age_seconds, status.max_connection_age_seconds) == (0, 600)
    assert (producer.grace_seconds, status.grace_seconds) == (45, 20)
    assert (producer.log_level, status.log_level, status.log_format) == ("warning", "debug", "console")
    assert (consumer.handlers, consumer.finish_seconds) == (["ours.handlers", "ours.more"], 11)
    assert (consumer.pod_deletion_cost, consumer.pod_name, consumer.pod_namespace) == (
        True,
        "headrace-pod-1",
        "default",
    )
    assert (consumer.ai_backend, consumer.ai_base_url, consumer.ai_model, consumer.ai_timeout_seconds) == (
        "openai",
        "http://inference.models:8000/v1",
        "small",
        90.5,
    )
    assert consumer.ai_api_key.get_secret_value() == "key"
    assert set(consumer.topology.queues) == {"default", "images"}
    assert producer.subject_prefix == "ours"


def test_the_bundled_servers_are_what_the_services_are_told(tmp_path: Path) -> None:
    objects = scenario("laptop")
    password = base64.b64decode(one(objects, "Secret", "headrace-postgres")["data"]["password"]).decode()
    for pod, container in services(objects):
        found = settings(container, pod, objects, tmp_path)
        assert found.database_url == "postgresql://postgres@headrace-postgres:5432/headrace"
        assert found.nats_url == "nats://headrace-nats:4222"
        # libpq reads it; a server of one's own gets its password in the URL.
        assert environment(container, pod, objects)["PGPASSWORD"] == password
    assert len(password) == 32


@pytest.mark.parametrize("name", ["laptop-without-broker", "external-without-broker"])
def test_without_a_broker_there_is_no_nats_anywhere(name: str, tmp_path: Path) -> None:
    objects = scenario(name)
    for pod, container in services(objects):
        assert settings(container, pod, objects, tmp_path).broker == "none"
        assert "HEADRACE_NATS_URL" not in environment(container, pod, objects)
    text = str(objects)
    assert "nats:" not in text
    assert "4222" not in text
    assert "topology" not in text.replace("topologySpread", "").replace("topologyKey", "").replace("topology.kuber", "")


@EVERY
def test_every_command_exists_with_its_options(name: str) -> None:
    for maker, _, container in ours(scenario(name)):
        words = container["command"]
        if words[:2] == ["python", "-m"]:
            assert words[2:] == [container["name"]]
            assert (CHART.parents[2] / words[2] / "__main__.py").is_file()
            continue
        assert words[0] == "headrace", maker
        command: Any = get_command(build_app(words[1:]))
        rest = words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert not hasattr(command, "commands"), f"{maker}: no such verb: {words}"
        command.make_context("headrace", list(rest)).close()


@EVERY
def test_every_service_waits_for_the_schema_of_its_code(name: str) -> None:
    objects = scenario(name)
    for pod, container in services(objects):
        (first,) = pod["spec"]["initContainers"]
        assert first["command"][:3] == ["headrace", "db", "verify"]
        assert first["image"] == container["image"]
        urls = [environment(each, pod, objects)["HEADRACE_DATABASE_URL"] for each in (first, container)]
        assert len(set(urls)) == 1


@EVERY
def test_the_streams_have_the_copies_that_are_asked_for(name: str) -> None:
    three = {"production", "production-pools", "production-mutual-tls", "inline", "hpa", "everything"}
    expected = "3" if name in three else "1"
    (job,) = of_kind(scenario(name), "Job")
    commands = [container["command"] for container in containers(job["spec"]["template"])]
    assert all(words[words.index("--replicas") + 1] == expected for words in commands if "topology" in words)


def test_the_test_pod_asks_the_services_of_its_release(tmp_path: Path) -> None:
    objects = scenario("everything")
    (pod,) = of_kind(objects, "Pod")
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    environ = environment(container, pod, objects)
    assert environ["HEADRACE_PRODUCER_ADDRESS"] == "dns:///our-tasks-producer:50051"
    assert environ["HEADRACE_STATUS_ADDRESS"] == "dns:///our-tasks-status:50052"
    (token,) = [variable for variable in container["env"] if variable["name"] == "HEADRACE_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "verifier", "key": "secret"}}
    assert container["command"][:4] == ["headrace", "verify", "--http", "http://our-tasks-status-http:8080"]
    within = container["command"][container["command"].index("--within") + 1]
    assert int(within) < pod["spec"]["activeDeadlineSeconds"]


def test_the_charts_code_is_the_repositorys() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == headrace.__version__
    images = {container["image"] for _, _, container in ours(scenario("laptop"))}
    assert images == {f"headrace:{headrace.__version__}"}


def test_the_default_configuration_changes_nothing() -> None:
    values = tomllib.loads(_values()["config"])
    assert values == {"queues": [{"name": "default"}]}


def _values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("sets", "image"),
    [
        ({}, "headrace:0.1.0"),
        (
            {"image.repository": "registry.example:5000/headrace", "image.tag": "1.2"},
            "registry.example:5000/headrace:1.2",
        ),
        ({"image.digest": DIGEST}, f"headrace:0.1.0@{DIGEST}"),
        ({"image.digest": DIGEST, "consumer.image": {"repository": "ours", "tag": "3"}}, "ours:3"),
        ({"image.tag": "1", "consumer.image": {"digest": DIGEST}}, f"headrace:1@{DIGEST}"),
    ],
)
def test_a_digest_stays_with_the_image_that_it_was_given_for(sets: dict[str, Any], image: str) -> None:
    consumer = one(render(SCENARIOS["laptop"], sets), "Deployment", "headrace-consumer")
    assert {container["image"] for container in containers(consumer["spec"]["template"])} == {image}


@pytest.mark.parametrize(
    ("files", "sets", "said"),
    [
        ("", {}, "set exactly one of database.existingSecret.name, database.url and bundled.postgres.enabled"),
        ("inline", {"bundled.postgres.enabled": True}, "more than one Postgres: set exactly one of"),
        ("inline", {"nats.url": ""}, "nats.url and bundled.nats.enabled, or broker to none"),
        ("inline", {"nats.existingSecret.name": "other"}, "more than one NATS: set exactly one of"),
        ("laptop", {"nats.streamReplicas": 3}, "set nats.streamReplicas to 1"),
        ("laptop", {"ai.backend": "openai"}, "set ai.model"),
        ("laptop", {"config": "[[queues]\n"}, "config is not TOML"),
        ("laptop", {"consumer.autoscaling.queues": ["images"]}, 'add [[queues]] with name = "images" to config'),
        ("laptop", {"consumerPools": {"a": {"autoscaling": {"queues": ["b"]}}}}, "consumerPools.a.autoscaling.queues"),
        (
            "laptop",
            {"consumer.finishSeconds": 21},
            "consumer.finishSeconds is 21 and graceSeconds 20: set finishSeconds",
        ),
        ("laptop", {"consumerPools": {"gpu": {"graceSeconds": 1}}}, "consumerPools.gpu.finishSeconds is 2"),
        ("hpa", {"consumer.autoscaling.minReplicas": 11}, "set minReplicas to at most maxReplicas"),
        ("hpa", {"producer.autoscaling.minReplicas": 0}, "producer.autoscaling.minReplicas is 0"),
        ("production", {"consumer.autoscaling.maxReplicas": 5}, "consumer.autoscaling.fallbackReplicas is 6 and maxR"),
        (
            "laptop",
            {"consumer.rollingUpdate": {"maxSurge": "0%", "maxUnavailable": 0}},
            "set maxSurge or maxUnavailable",
        ),
    ],
)
def test_values_that_cannot_work_together_are_refused_with_what_to_set(
    files: str, sets: dict[str, Any], said: str
) -> None:
    assert said in refusal(SCENARIOS[files] if files else (), sets)


def test_the_access_file_is_mounted_where_the_variable_says_and_only_there() -> None:
    objects = scenario("everything")
    for component in SERVICES:
        pod = one(objects, "Deployment", f"our-tasks-{component}")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        variables = {each["name"]: each.get("value") for each in container["env"]}
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        if component == "consumer":
            assert "HEADRACE_AUTH_FILE" not in variables
            assert "access" not in {*mounts, *volumes}
            continue
        # No subPath: a file that is mounted alone never changes.
        assert mounts["access"] == {"name": "access", "mountPath": "/etc/headrace-access", "readOnly": True}
        assert volumes["access"]["secret"]["secretName"] == "access"
        assert variables["HEADRACE_AUTH_FILE"] == "/etc/headrace-access/who.toml"


def test_without_an_access_file_there_is_no_trace_of_it() -> None:
    assert "headrace-access" not in yaml.safe_dump_all(scenario("inline"))
