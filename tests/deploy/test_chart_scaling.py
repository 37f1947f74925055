"""How many pods there are, and who decides it: replicas, budgets, autoscaling, pools, roll-outs."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import yaml

from headrace_core.settings.environment import load_settings
from status.gauges import GAUGES
from status.trigger import OLDEST_AGE, WORK, parse
from tests.deploy.rendering import SCENARIOS, Object, of_kind, one, render, scenario
from tests.deploy.tools import ROOT

EVERY = pytest.mark.parametrize("name", SCENARIOS)


def targets(objects: list[Object]) -> set[str]:
    """The Deployments that something scales."""
    scalers = of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    names = [each["spec"]["scaleTargetRef"]["name"] for each in scalers]
    assert len(names) == len(set(names))
    return set(names)


@EVERY
def test_replicas_are_left_to_whoever_scales(name: str) -> None:
    objects = scenario(name)
    deployments = {each["metadata"]["name"]: each for each in of_kind(objects, "Deployment")}
    assert targets(objects) <= set(deployments)
    for each, deployment in deployments.items():
        assert ("replicas" in deployment["spec"]) is (each not in targets(objects))


def test_zero_replicas_are_zero() -> None:
    objects = scenario("production-pools")
    replicas = {each["metadata"]["name"]: each["spec"].get("replicas") for each in of_kind(objects, "Deployment")}
    assert replicas == {
        "headrace-producer": None,
        "headrace-status": None,
        "headrace-consumer": 0,
        "headrace-consumer-gpu": None,
        "headrace-consumer-idle": 0,
        "headrace-consumer-steady": 2,
    }


def most(objects: list[Object], name: str) -> int:
    """The most pods that a Deployment can have."""
    for each in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        if each["spec"]["scaleTargetRef"]["name"] == name:
            return int(each["spec"].get("maxReplicas", 0) or each["spec"]["maxReplicaCount"])
    return int(one(objects, "Deployment", name)["spec"]["replicas"])


@EVERY
def test_a_budget_never_holds_the_only_pod_and_nobody_needs_one_for_it(name: str) -> None:
    objects = scenario(name)
    for each in of_kind(objects, "PodDisruptionBudget"):
        spec = each["spec"]
        assert "minAvailable" not in spec
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        away = spec["maxUnavailable"]
        assert (away if isinstance(away, int) else ceil(int(away.rstrip("%")) / 100)) >= 1
        assert most(objects, each["metadata"]["name"]) > 1


def test_there_is_a_budget_wherever_there_can_be_two_pods_unless_it_is_switched_off() -> None:
    def budgets(name: str) -> set[str]:
        return {each["metadata"]["name"] for each in of_kind(scenario(name), "PodDisruptionBudget")}

    assert budgets("laptop") == set()
    assert budgets("production") == {"headrace-producer", "headrace-status", "headrace-consumer"}
    assert budgets("production-pools") == {"headrace-producer", "headrace-status", "headrace-consumer-gpu"}
    assert budgets("everything") == {"our-tasks-producer", "our-tasks-consumer"}


@EVERY
def test_a_rollout_takes_no_pod_away_before_there_is_another(name: str) -> None:
    for each in of_kind(scenario(name), "Deployment"):
        component = each["metadata"]["labels"]["app.kubernetes.io/component"]
        expected: Object = {"maxSurge": "25%" if component == "consumer" else 1, "maxUnavailable": 0}
        if name == "everything" and component == "consumer":
            expected = {"maxSurge": 0, "maxUnavailable": "10%"}
        assert each["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": expected}


def test_a_pool_is_the_consumer_with_what_differs() -> None:
    objects = scenario("production-pools")
    consumer, gpu = (one(objects, "Deployment", f"headrace-consumer{pool}") for pool in ("", "-gpu"))
    (own,), (base,) = (each["spec"]["template"]["spec"]["containers"] for each in (gpu, consumer))
    assert own["image"] == "registry.example/vision:7"
    assert own["imagePullPolicy"] == "Always"
    assert own["resources"]["limits"] == {"nvidia.com/gpu": 1, "memory": "8Gi"}
    assert own["resources"]["requests"] == base["resources"]["requests"]
    variables = {each["name"]: each.get("value") for each in own["env"]}
    assert variables["HEADRACE_HANDLERS"] == "vision.detect,vision.segment"
    assert variables["CUDA_VISIBLE_DEVICES"] == "all"
    assert gpu["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 5 + 120 + 15
    assert gpu["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    labels = gpu["spec"]["template"]["metadata"]["labels"]
    assert (labels["app.kubernetes.io/component"], labels["headrace/pool"]) == ("consumer", "gpu")
    assert "HEADRACE_HANDLERS" not in {each["name"] for each in base["env"]}


def test_a_pool_can_switch_off_what_the_consumer_switches_on() -> None:
    consumer: Object = {"podDeletionCost": True, "handlers": ["ours"], "preStopSeconds": 9, "replicas": 4}
    pool = {"podDeletionCost": False, "handlers": [], "preStopSeconds": 0, "replicas": 0, "priorityClassName": ""}
    sets: dict[str, Any] = {f"consumer.{key}": value for key, value in consumer.items()}
    objects = render(SCENARIOS["laptop"], sets | {"consumer.priorityClassName": "high", "consumerPools": {"off": pool}})
    deployment = one(objects, "Deployment", "headrace-consumer-off")
    spec = deployment["spec"]["template"]["spec"]
    names = {each["name"] for each in spec["containers"][0]["env"]}
    assert not names & {"HEADRACE_POD_DELETION_COST", "HEADRACE_HANDLERS"}
    assert "lifecycle" not in spec["containers"][0]
    assert "priorityClassName" not in spec
    assert deployment["spec"]["replicas"] == 0


@EVERY
def test_the_external_scaler_understands_what_keda_is_told(name: str) -> None:
    objects = scenario(name)
    for each in of_kind(objects, "ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            asked, violations = parse(trigger["metadata"])
            assert violations == []
            assert asked.metric.key == trigger["name"]


def test_keda_is_pushed_the_work_and_asked_the_age() -> None:
    objects = scenario("production")
    spec = one(objects, "ScaledObject", "headrace-consumer")["spec"]
    work, age = spec["triggers"]
    assert (work["type"], work["metricType"]) == ("external-push", "AverageValue")
    assert (age["type"], age["metricType"]) == ("external", "Value")
    assert work["metadata"]["scalerAddress"] == "headrace-status.default.svc.cluster.local:50052"
    assert "queues" not in work["metadata"]
    assert (parse(work["metadata"])[0].metric, parse(age["metadata"])[0].metric) == (WORK, OLDEST_AGE)
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (3, 30)
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 6}


def test_the_scaler_is_addressed_where_the_service_is() -> None:
    objects = render(
        SCENARIOS["production"],
        {"clusterDomain": "cluster.example", "fullnameOverride": "ours"},
        namespace="tasks",
    )
    (scaled,) = of_kind(objects, "ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        host, port = trigger["metadata"]["scalerAddress"].split(":")
        service, namespace = host.split(".")[:2]
        assert host == f"{service}.{namespace}.svc.cluster.example"
        assert one(objects, "Service", service)["metadata"]["namespace"] == namespace == "tasks"
        assert int(port) in {each["port"] for each in one(objects, "Service", service)["spec"]["ports"]}


def test_a_pool_scales_by_its_own_queues_and_to_zero(tmp_path: Any) -> None:
    objects = scenario("production-pools")
    (scaled,) = of_kind(objects, "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"][:1]
    assert scaled["spec"]["scaleTargetRef"]["name"] == "headrace-consumer-gpu"
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (0, 4)
    asked, _ = parse(trigger["metadata"])
    assert (asked.queues, asked.target) == (("vision", "video"), 4)
    (tmp_path / "headrace.toml").write_text(one(objects, "ConfigMap", "headrace")["data"]["headrace.toml"])
    declared = load_settings({}, default_listen="127.0.0.1:0", cwd=tmp_path).topology.queues
    assert asked.unknown(declared) == []


def test_without_keda_the_gauge_scales_consumers_and_the_cpu_the_other_two() -> None:
    objects = scenario("hpa")
    metrics = {
        each["metadata"]["name"]: each["spec"]["metrics"][0] for each in of_kind(objects, "HorizontalPodAutoscaler")
    }
    assert of_kind(objects, "ScaledObject") == []
    for service in ("producer", "status"):
        metric = metrics[f"headrace-{service}"]["resource"]
        assert (metric["name"], metric["target"]) == ("cpu", {"type": "Utilization", "averageUtilization": 70})
    external = {name: metric["external"] for name, metric in metrics.items() if metric["type"] == "External"}
    assert {each["metric"]["name"] for each in external.values()} == {"headrace_queue_work"}
    assert {name: each["metric"].get("selector") for name, each in external.items()} == {
        "headrace-consumer": {"matchLabels": {"queue": "images"}},
        "headrace-consumer-mail": {
            "matchExpressions": [{"key": "queue", "operator": "In", "values": ["mail", "letters"]}]
        },
        "headrace-consumer-all": None,
    }
    assert external["headrace-consumer"]["target"] == {"type": "AverageValue", "averageValue": "64"}


def test_the_gauge_is_one_that_the_status_service_has() -> None:
    (asked,) = {
        metric["external"]["metric"]["name"]
        for each in of_kind(scenario("hpa"), "HorizontalPodAutoscaler")
        for metric in each["spec"]["metrics"]
        if metric["type"] == "External"
    }
    assert asked in {described.name for gauge in GAUGES for described in gauge.describe()}


def test_the_service_monitor_reads_the_ops_port_of_the_three_services_once() -> None:
    objects = scenario("hpa")
    (monitor,) = of_kind(objects, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (expression,) = monitor["spec"]["selector"]["matchExpressions"]
    exact = monitor["spec"]["selector"]["matchLabels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    read = [
        service["metadata"]["name"]
        for service in of_kind(objects, "Service")
        if exact <= service["metadata"]["labels"].items()
        and service["metadata"]["labels"][expression["key"]] in expression["values"]
        and endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    ]
    assert sorted(read) == ["headrace-consumer", "headrace-producer", "headrace-status"]


def test_the_alerts_are_the_file_and_carry_the_labels_asked_for() -> None:
    (rule,) = of_kind(scenario("everything"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert not of_kind(scenario("hpa"), "PrometheusRule")


def test_the_dashboard_is_the_file_and_is_found_by_the_sidecar() -> None:
    objects = scenario("everything")
    (found,) = [each for each in of_kind(objects, "ConfigMap") if "headrace.json" in each["data"]]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert (
        found["data"]["headrace.json"] == (ROOT / "deploy" / "monitoring" / "dashboards" / "headrace.json").read_text()
    )
    # Helm keeps a release in one object of at most 1 MiB; it is packed, and the files of the chart are in it.
    assert len(found["data"]["headrace.json"]) < 300_000


@EVERY
def test_pods_are_spread_over_nodes_and_zones_unless_they_are_told_not_to(name: str) -> None:
    for each in of_kind(scenario(name), "Deployment"):
        component = each["metadata"]["labels"]["app.kubernetes.io/component"]
        spreads = each["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        keys = [spread["topologyKey"] for spread in spreads]
        off = name == "everything" and component == "producer"
        assert keys == ([] if off else ["kubernetes.io/hostname", "topology.kubernetes.io/zone"])
        strict = name == "everything" and component == "status"
        assert {spread["whenUnsatisfiable"] for spread in spreads} <= {"DoNotSchedule" if strict else "ScheduleAnyway"}


def test_scheduling_reaches_the_pods() -> None:
    spec = one(scenario("everything"), "Deployment", "our-tasks-producer")["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert spec["tolerations"] == [{"key": "dedicated", "operator": "Equal", "value": "tasks", "effect": "NoSchedule"}]
    assert "nodeAffinity" in spec["affinity"]
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("important", "gvisor")
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert {volume["name"] for volume in spec["volumes"]} == {"config", "tmp", "authority", "cache", "access"}
    mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts == {"/etc/headrace", "/tmp", "/etc/authority", "/cache", "/etc/headrace-access"}
    metadata = one(scenario("everything"), "Deployment", "our-tasks-producer")["spec"]["template"]["metadata"]
    assert metadata["annotations"]["example/annotation"] == "1"
    assert metadata["labels"]["example/label"] == "1"
    assert metadata["labels"]["team"] == "tasks"
    assert metadata["labels"]["app.kubernetes.io/component"] == "producer"
