"""The objects agree with each other: what one names, another one is, and it is there in time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from tests.deploy.rendering import (
    SCENARIOS,
    Object,
    containers,
    is_hook,
    name_of,
    of_kind,
    one,
    pod_of,
    pods,
    render,
    scenario,
)

EVERY = pytest.mark.parametrize("name", SCENARIOS)
# What the scenarios say exists already: `kind/name` to its keys.
EXISTING: dict[str, set[str]] = {
    "Secret/headrace-database": {"url"},
    "Secret/headrace-broker": {"url"},
    "Secret/our-database": {"dsn"},
    "Secret/our-broker": {"urls"},
    "Secret/our-password": {"postgres"},
    "Secret/inference": {"token"},
    "Secret/access": {"who.toml"},
    "Secret/verifier": {"secret"},
    "Secret/authority": set(),
    "Secret/registry": set(),
    "ConfigMap/authority": {"path"},
    "ServiceAccount/our-account": set(),
    "ServiceAccount/our-consumers": set(),
    "Secret/headrace-tls": {"tls.crt", "tls.key", "ca.crt"},
    "Secret/our-certificate": {"chain.pem", "key.pem", "clients.pem", "authority.pem"},
    "Secret/our-client": {"client.pem", "client-key.pem"},
    "Secret/007": {"1.0"},
    "Secret/1e3": {"null"},
    "Secret/12": {"0x1"},
    "ServiceAccount/123": set(),
}
Reference = tuple[str, str | None]


def references(pod: Object) -> Iterator[Reference]:
    """What a pod needs, as `kind/name`, each with a key of it or None."""
    spec = pod["spec"]
    if "serviceAccountName" in spec:
        yield f"ServiceAccount/{spec['serviceAccountName']}", None
    for secret in spec.get("imagePullSecrets", []):
        yield f"Secret/{secret['name']}", None
    for volume in spec.get("volumes", []):
        yield from _of_volume(volume)
    for container in containers(pod):
        for variable in container.get("env", []):
            yield from _of_variable(variable.get("valueFrom", {}))


def _of_volume(volume: Object) -> Iterator[Reference]:
    named = (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"))
    for source, kind, field in (*named, ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName")):
        if source in volume:
            yield f"{kind}/{volume[source][field]}", None
    for part in volume.get("projected", {}).get("sources", []):
        for item in part["secret"]["items"]:
            yield f"Secret/{part['secret']['name']}", item["key"]


def _of_variable(source: Object) -> Iterator[Reference]:
    for reference, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if reference in source:
            yield f"{kind}/{source[reference]['name']}", source[reference]["key"]


def unmet(pod: Object, objects: list[Object]) -> list[Reference]:
    """Those that are neither among the objects nor declared as existing."""
    there = EXISTING | {name_of(each): set(each.get("data", {})) for each in objects}
    return [
        (what, key) for what, key in references(pod) if what not in there or not (key is None or key in there[what])
    ]


@EVERY
def test_what_pods_refer_to_exists_with_its_keys(name: str) -> None:
    objects = scenario(name)
    assert {maker: missing for maker, pod in pods(objects) if (missing := unmet(pod, objects))} == {}


@EVERY
def test_a_hook_before_the_installation_needs_earlier_hooks_only(name: str) -> None:
    hooks = [each for each in scenario(name) if is_hook(each) and _phases(each) == {"pre-install", "pre-upgrade"}]
    for each in hooks:
        earlier = [other for other in hooks if _weight(other) < _weight(each)]
        if pod := pod_of(each):
            assert unmet(pod, earlier) == [], name_of(each)


def _phases(each: Object) -> set[str]:
    return set(each["metadata"]["annotations"]["helm.sh/hook"].split(","))


def _weight(each: Object) -> int:
    return int(each["metadata"]["annotations"]["helm.sh/hook-weight"])


@EVERY
def test_hooks_leave_nothing_behind_and_share_no_name_with_ordinary_objects(name: str) -> None:
    objects = scenario(name)
    ordinary = {name_of(each) for each in objects if not is_hook(each)}
    for each in objects:
        if is_hook(each):
            assert name_of(each) not in ordinary
            policy = set(each["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(","))
            assert policy == ({"before-hook-creation"} | (set() if _phases(each) == {"test"} else {"hook-succeeded"}))


@pytest.mark.parametrize(
    ("name", "hook", "steps"),
    [
        ("production", True, ["migrate", "topology"]),
        ("inline", True, ["migrate", "topology"]),
        ("external-without-broker", True, ["migrate"]),
        ("laptop", False, ["migrate", "topology"]),
        ("laptop-without-broker", False, ["migrate"]),
        ("only-nats-bundled", False, ["migrate", "topology"]),
        ("only-postgres-bundled", False, ["migrate", "topology"]),
    ],
)
def test_the_job_prepares_before_the_installation_wherever_its_servers_exist_then(
    name: str, hook: bool, steps: list[str]
) -> None:
    (job,) = of_kind(scenario(name), "Job")
    assert is_hook(job) is hook
    assert job["metadata"]["name"] == ("headrace-prepare" if hook else "headrace-prepare-1")
    assert ("ttlSecondsAfterFinished" in job["spec"]) is not hook
    assert [container["name"] for container in containers(job["spec"]["template"])] == steps


def test_what_the_hook_and_the_services_read_is_the_same() -> None:
    objects = scenario("inline")
    for kind in ("ConfigMap", "Secret"):
        assert one(objects, kind, "headrace")["data"] == one(objects, kind, "headrace-prepare")["data"]


def _selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@EVERY
def test_a_deployment_selects_its_own_pods_and_no_others(name: str) -> None:
    objects = scenario(name)
    makers = of_kind(objects, "Deployment", "StatefulSet")
    everybody = {maker: pod["metadata"]["labels"] for maker, pod in pods(objects)}
    for each in makers:
        selector = each["spec"]["selector"]["matchLabels"]
        assert [maker for maker, labels in everybody.items() if _selects(selector, labels)] == [name_of(each)]


@EVERY
def test_budgets_and_spreads_count_one_deployments_pods(name: str) -> None:
    objects = scenario(name)
    deployments = {each["metadata"]["name"]: each for each in of_kind(objects, "Deployment")}
    for budget in of_kind(objects, "PodDisruptionBudget"):
        own = deployments[budget["metadata"]["name"]]
        assert budget["spec"]["selector"] == own["spec"]["selector"]
    for own in deployments.values():
        for spread in own["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert spread["labelSelector"] == own["spec"]["selector"]
            assert spread["matchLabelKeys"] == ["pod-template-hash"]


@EVERY
def test_services_lead_to_ports_of_the_pods_that_they_mean(name: str) -> None:
    objects = scenario(name)
    for service in of_kind(objects, "Service"):
        component = service["metadata"]["labels"]["app.kubernetes.io/component"]
        meant = [pod for _, pod in pods(objects) if _selects(service["spec"]["selector"], pod["metadata"]["labels"])]
        assert meant
        for pod, port in product(meant, service["spec"]["ports"]):
            assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == component
            (container,) = pod["spec"]["containers"]
            ports = {each["name"]: each["containerPort"] for each in container["ports"]}
            assert ports[port["targetPort"]] == port["port"]


def test_the_grpc_services_are_headless_and_the_consumers_one_has_its_pools() -> None:
    objects = scenario("production-pools")
    ports = {"producer": 50051, "status": 50052, "consumer": 50053}
    for component, number in ports.items():
        spec = one(objects, "Service", f"headrace-{component}")["spec"]
        assert spec["clusterIP"] == "None"
        assert {port["name"]: port["port"] for port in spec["ports"]} == {"grpc": number, "ops": 9090}
    consumers = one(objects, "Service", "headrace-consumer")["spec"]["selector"]
    chosen = [maker for maker, pod in pods(objects) if _selects(consumers, pod["metadata"]["labels"])]
    assert sorted(chosen) == [f"Deployment/headrace-consumer{pool}" for pool in ("", "-gpu", "-idle", "-steady")]
    http = one(objects, "Service", "headrace-status-http")["spec"]
    assert (http["type"], [port["port"] for port in http["ports"]]) == ("ClusterIP", [8080])


@EVERY
def test_probes_ask_ports_that_the_container_has(name: str) -> None:
    for maker, pod in pods(scenario(name)):
        for container in pod["spec"]["containers"]:
            named = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                if "grpc" in probe:
                    assert probe["grpc"]["port"] == named["grpc"], maker
                if "httpGet" in probe:
                    assert probe["httpGet"]["port"] in named, maker


def test_what_selects_pods_does_not_depend_on_the_version() -> None:
    """A Deployment's selector, a StatefulSet's claims: an upgrade could not change them."""
    sets = {"image.tag": "9.9.9", "commonLabels": {"team": "tasks"}, "consumer.podLabels": {"x": "y"}}
    before, after = render(SCENARIOS["laptop"]), render(SCENARIOS["laptop"], sets)
    for each in of_kind(before, "Deployment", "StatefulSet"):
        other = one(after, each["kind"], each["metadata"]["name"])
        assert each["spec"]["selector"] == other["spec"]["selector"]
        assert each["spec"].get("volumeClaimTemplates") == other["spec"].get("volumeClaimTemplates")
        unchanging = {**each["spec"]["selector"]["matchLabels"]}
        assert not {key for key in unchanging if "version" in key or "chart" in key}


@pytest.mark.parametrize(
    "sets",
    [{"config": '[[queues]]\nname = "default"\nmax_attempts = 9\n'}, {"database.url": "postgresql://other/headrace"}],
    ids=["config", "url"],
)
def test_a_changed_configuration_replaces_the_pods(sets: dict[str, str]) -> None:
    def checksums(objects: list[Object]) -> set[str]:
        annotations = (each["spec"]["template"]["metadata"]["annotations"] for each in of_kind(objects, "Deployment"))
        return {each["checksum/config"] for each in annotations}

    before, again, after = (checksums(render(SCENARIOS["inline"], more)) for more in ({}, {"log.level": "debug"}, sets))
    assert len(before) == 1
    assert before == again
    assert not before & after


def test_the_bundled_servers_password_does_not_replace_pods() -> None:
    """It is another one in each render without a cluster."""
    first, second = (
        render(SCENARIOS["laptop"], {"log.level": "info", "log.format": text}) for text in ("json", "console")
    )
    passwords = {one(objects, "Secret", "headrace-postgres")["data"]["password"] for objects in (first, second)}
    assert len(passwords) == 2
    for deployment in of_kind(first, "Deployment"):
        annotations = one(second, "Deployment", deployment["metadata"]["name"])["spec"]["template"]["metadata"][
            "annotations"
        ]
        assert annotations == deployment["spec"]["template"]["metadata"]["annotations"]
