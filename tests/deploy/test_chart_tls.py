"""TLS in the chart: who mounts what, what they are told, and that nothing speaks plainly to a port that does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.rendering import LAPTOP, SCENARIOS, VALUES, Object, of_kind, one, pods, refusal, render, scenario
from tests.deploy.test_chart_environment import environment, ours, services

FOLDER = "/etc/headrace-tls"
BOTH = pytest.mark.parametrize("name", ["laptop-tls", "production-mutual-tls"])
SERVER = {"HEADRACE_TLS_CERT_FILE", "HEADRACE_TLS_KEY_FILE", "HEADRACE_TLS_CLIENT_CA_FILE"}


def variables(container: Object, pod: Object, objects: list[Object]) -> dict[str, str]:
    """What is said of TLS."""
    found = environment(container, pod, objects)
    return {name: value for name, value in found.items() if "_TLS" in name or "_CLIENT_" in name}


def verify(objects: list[Object]) -> tuple[Object, Object]:
    """Pod and container of `helm test`."""
    ((pod, container),) = [(pod, container) for _, pod, container in ours(objects) if container["name"] == "verify"]
    return pod, container


def volume(pod: Object) -> Any:
    (found,) = [each for each in pod["spec"]["volumes"] if each["name"] == "tls"]
    return found


def mount(container: Object) -> Any:
    (found,) = [each for each in container["volumeMounts"] if each["name"] == "tls"]
    return found


def test_services_are_told_the_files_of_the_secret() -> None:
    objects = scenario("laptop-tls")
    for pod, container in services(objects):
        assert variables(container, pod, objects) == {
            "HEADRACE_TLS_CERT_FILE": f"{FOLDER}/tls.crt",
            "HEADRACE_TLS_KEY_FILE": f"{FOLDER}/tls.key",
        }
        assert volume(pod)["secret"]["secretName"] == "headrace-tls"
    objects = scenario("production-mutual-tls")
    for pod, container in services(objects):
        assert variables(container, pod, objects) == {
            "HEADRACE_TLS_CERT_FILE": f"{FOLDER}/chain.pem",
            "HEADRACE_TLS_KEY_FILE": f"{FOLDER}/key.pem",
            "HEADRACE_TLS_CLIENT_CA_FILE": f"{FOLDER}/clients.pem",
        }
        assert volume(pod)["secret"]["secretName"] == "our-certificate"


@BOTH
def test_the_files_are_mounted_as_a_whole_folder_and_read_only(name: str) -> None:
    """Whole: a file that is mounted by subPath is never renewed."""
    objects = scenario(name)
    for _pod, container in [*services(objects), verify(objects)]:
        assert mount(container) == {"name": "tls", "mountPath": FOLDER, "readOnly": True}
    for pod, _container in services(objects):
        assert volume(pod)["secret"]["defaultMode"] == 0o440


@BOTH
def test_probes_ask_the_ops_port_because_kubernetes_grpc_probe_speaks_no_tls(name: str) -> None:
    for _pod, container in services(scenario(name)):
        for kind in ("startupProbe", "readinessProbe"):
            assert container[kind]["httpGet"] == {"path": "/readyz", "port": "ops"}
            assert "grpc" not in container[kind]
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "ops"}


@BOTH
def test_helms_test_believes_the_authority_and_never_has_the_services_key(name: str) -> None:
    objects = scenario(name)
    pod, container = verify(objects)
    assert container["command"][2:4] == ["--http", "https://headrace-status-http:8080"]
    told = variables(container, pod, objects)
    files = {
        item["path"]: item["key"] for part in volume(pod)["projected"]["sources"] for item in part["secret"]["items"]
    }
    if name == "laptop-tls":
        assert told == {"HEADRACE_TLS_CA_FILE": f"{FOLDER}/ca.crt"}
        assert files == {"ca.crt": "ca.crt"}
    else:
        assert told == {
            "HEADRACE_TLS_CA_FILE": f"{FOLDER}/ca.crt",
            "HEADRACE_CLIENT_CERT_FILE": f"{FOLDER}/client.crt",
            "HEADRACE_CLIENT_KEY_FILE": f"{FOLDER}/client.key",
        }
        assert files == {"ca.crt": "authority.pem", "client.crt": "client.pem", "client.key": "client-key.pem"}


@BOTH
def test_jobs_and_waiting_containers_know_nothing_of_it(name: str) -> None:
    objects = scenario(name)
    for _maker, pod, container in ours(objects):
        if container["name"] in {"migrate", "topology", "wait-for-schema"}:
            assert variables(container, pod, objects) == {}
            assert "tls" not in {each["name"] for each in container["volumeMounts"]}


def parameters(objects: list[Object]) -> dict[str, tuple[str, str]]:
    spec = one(objects, "TriggerAuthentication", "headrace-scaler")["spec"]
    return {each["parameter"]: (each["name"], each["key"]) for each in spec["secretTargetRef"]}


def test_keda_asks_over_tls_with_the_same_authority() -> None:
    objects = scenario("production-mutual-tls")
    assert parameters(objects) == {
        "caCert": ("our-certificate", "authority.pem"),
        "tlsClientCert": ("our-client", "client.pem"),
        "tlsClientKey": ("our-client", "client-key.pem"),
    }
    (scaled,) = of_kind(objects, "ScaledObject")
    assert len(scaled["spec"]["triggers"]) == 2
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["authenticationRef"] == {"name": "headrace-scaler"}
        # The scaler refuses what it does not know: the rest goes by the reference.
        assert set(trigger["metadata"]) <= {"scalerAddress", "metric", "target", "queues"}


def test_without_a_certificate_of_its_own_keda_shows_the_services() -> None:
    sets = {"tls.clientSecret.name": "", "tls.existingSecret.name": "tls"}
    assert parameters(render(SCENARIOS["production-mutual-tls"], sets))["tlsClientKey"] == ("tls", "key.pem")
    without = {"tls.existingSecret.clientCaKey": "", "tls.existingSecret.name": "tls"}
    assert set(parameters(render(SCENARIOS["production-mutual-tls"], without))) == {"caCert"}


def test_there_is_no_authentication_for_keda_where_it_scales_nothing() -> None:
    assert of_kind(scenario("laptop-tls"), "TriggerAuthentication") == []


def test_without_a_secret_nothing_of_it_is_there() -> None:
    for name in ("laptop", "production"):
        objects = scenario(name)
        assert of_kind(objects, "TriggerAuthentication") == []
        for _maker, pod in pods(objects):
            assert "tls" not in {each["name"] for each in pod["spec"]["volumes"]}
        for pod, container in services(objects):
            assert not SERVER & set(environment(container, pod, objects))
            assert "grpc" in container["readinessProbe"]


@pytest.mark.parametrize(
    "wrong", [{"tls.existingSecret.name": "No Name"}, {"tls.existingSecret.certKey": ""}, {"tls.caKey": "a/b"}]
)
def test_names_and_keys_that_cannot_exist_are_refused(wrong: dict[str, str]) -> None:
    assert "tls" in refusal([LAPTOP, VALUES / "tls.yaml"], wrong)
