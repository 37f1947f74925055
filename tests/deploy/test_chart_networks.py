"""Who may talk to whom, by the chart's NetworkPolicies: what the design draws, and nothing else."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.deploy.network_policies import End, admitted, allowed, selects
from tests.deploy.rendering import SCENARIOS, Object, is_hook, of_kind, pods, render, scenario

PORTS = (53, 443, 4222, 5432, 6443, 8000, 8080, 8222, 9090, 50051, 50052, 50053)
OURS = ("producer", "status", "consumer", "prepare", "verify")
SERVERS = {"postgres": 5432, "nats": 4222}
Connection = tuple[str, str, int]


def ends(objects: list[Object]) -> dict[str, End]:
    """Every pod of the release by its component (a pool by `consumer/pool`), and the world around it."""
    found = {
        "neighbour": End("default", {"app": "shop"}),
        "shop": End("web", {"app": "shop"}),
        "prometheus": End("monitoring", {"app": "prometheus"}),
        "keda": End("keda", {"app": "keda-operator"}),
        "dns": End("kube-system", {"k8s-app": "kube-dns"}),
        "dns-cache": End(address="169.254.20.10"),
        "models": End("models", {"app": "inference"}),
        "stranger": End("elsewhere", {"app": "stranger"}),
        "internet": End(address="203.0.113.7"),
        "database": End(address="10.1.2.3"),
        "old-database": End(address="10.1.9.3"),
        "api": End(address="10.0.0.1"),
    }
    for _, pod in pods(objects):
        labels = pod["metadata"]["labels"]
        pool = labels.get("headrace/pool", "default")
        component = labels["app.kubernetes.io/component"]
        found[component if pool == "default" else f"{component}/{pool}"] = End("default", labels)
    return found


def connections(objects: list[Object]) -> set[Connection]:
    """Every connection with an end in the release that the policies allow. DNS, over UDP too, only by `resolves`."""
    policies, everybody = of_kind(objects, "NetworkPolicy"), ends(objects)
    ours = {name for name in everybody if name.partition("/")[0] in {*OURS, *SERVERS}}
    return {
        (start, end, port)
        for start, end, port in product(everybody, everybody, PORTS)
        if start != end and {start, end} & ours and allowed(policies, everybody[start], everybody[end], port)
    }


def resolves(objects: list[Object]) -> dict[str, set[str]]:
    """Of whom each pod may ask names."""
    policies, everybody = of_kind(objects, "NetworkPolicy"), ends(objects)
    return {
        name: {
            other
            for other in everybody
            if all(allowed(policies, everybody[name], everybody[other], 53, kind) for kind in ("UDP", "TCP"))
        }
        for name in (*OURS, *SERVERS)
        if name in everybody
    }


def without_dns(found: set[Connection]) -> set[Connection]:
    return {each for each in found if each[2] != 53}


def test_the_laptops_pods_talk_as_the_design_draws_and_in_no_other_way() -> None:
    objects = scenario("laptop-closed")
    expected = {(who, server, port) for who in OURS[:4] for server, port in SERVERS.items()}
    # Every pod of the namespace may be let in; of our own, the test is let out, and status pods to the producer.
    for caller in ("neighbour", "verify"):
        expected |= {(caller, "producer", 50051), (caller, "status", 50052), (caller, "status", 8080)}
    expected.add(("status", "producer", 50051))
    expected |= {("prometheus", service, 9090) for service in OURS[:3]}
    assert without_dns(connections(objects)) == expected


def test_the_bundled_servers_themselves_let_in_nobody_else() -> None:
    """Whatever the others may start: a pod of somebody else has no policy of ours on its side."""
    objects = scenario("laptop-closed")
    policies, everybody = of_kind(objects, "NetworkPolicy"), ends(objects)
    for server, port in SERVERS.items():
        let_in = {name for name in everybody if admitted(policies, everybody[name], everybody[server], port)}
        assert let_in == {*OURS[:4]}
        assert not any(admitted(policies, each, everybody[server], 8222) for each in everybody.values())


def test_names_are_asked_where_dns_is_and_by_those_that_connect_to_others() -> None:
    found = resolves(scenario("laptop-closed"))
    assert {name: found[name] for name in OURS} == {name: {"dns", "dns-cache"} for name in OURS}
    assert {name: found[name] for name in SERVERS} == {name: set() for name in SERVERS}


def test_external_servers_are_reached_on_their_ports_at_any_address() -> None:
    found = without_dns(connections(scenario("production")))
    for who in OURS[:4]:
        reached = {(end, port) for start, end, port in found if start == who}
        assert {port for _, port in reached} == {4222, 5432} | ({50051} if who == "status" else set())
        assert {("internet", 5432), ("internet", 4222), ("database", 5432)} <= reached
    assert not any(end == "prepare" for _, end, _ in found)
    assert not any(end in OURS and port in {4222, 5432} for _, end, port in found)


def test_keda_asks_the_scaler_where_it_scales_something() -> None:
    asks = ("keda", "status", 50052)
    assert {each for each in connections(scenario("production")) if each[0] == "keda"} == {asks}
    assert {each for each in connections(scenario("laptop-closed")) if each[0] == "keda"} == set()


def test_pools_may_do_what_consumers_may() -> None:
    objects = scenario("production-pools")
    found = connections(objects)
    by_start = {
        name: {(end, port) for start, end, port in found if start == name and not end.startswith("consumer")}
        for name in ends(objects)
    }
    assert by_start["consumer/gpu"] == by_start["consumer/idle"] == by_start["consumer"]
    # One of the pools sets its deletion cost, and the policy is that of all consumers.
    assert ("internet", 443) in by_start["consumer"]
    assert ("internet", 443) not in by_start["producer"]


def test_what_the_values_narrow_is_narrow() -> None:
    found = without_dns(connections(scenario("everything")))
    assert {(who, end, port) for who, end, port in found if end in OURS} == {
        (caller, end, port)
        for caller in ("shop", "verify")
        for end, port in (("producer", 50051), ("status", 50052), ("status", 8080))
    } | {("status", "producer", 50051)}
    servers = {("database", 5432)}
    for who in ("producer", "status", "prepare"):
        own = {("producer", 50051)} if who == "status" else set()
        assert {(end, port) for start, end, port in found if start == who} == servers | own
    assert {(end, port) for start, end, port in found if start == "consumer"} == servers | {
        ("models", 8000),
        ("api", 443),
    }


def test_an_empty_list_of_readers_is_nobody() -> None:
    sets: dict[str, Any] = {"networkPolicy.clients": [], "networkPolicy.monitoring": []}
    found = connections(render(SCENARIOS["laptop-closed"], sets))
    assert {(start, end) for start, end, _ in found if end in OURS[:3]} == {
        ("verify", "producer"),
        ("verify", "status"),
        ("status", "producer"),
    }


@pytest.mark.parametrize("name", ["laptop-closed", "production", "inline", "everything", "production-pools"])
def test_every_pod_is_closed_in_both_directions(name: str) -> None:
    objects = scenario(name)
    policies = of_kind(objects, "NetworkPolicy")
    for maker, pod in pods(objects):
        labels = pod["metadata"]["labels"]
        closing = [each for each in policies if selects(each["spec"]["podSelector"], labels)]
        types = [set(each["spec"]["policyTypes"]) for each in closing]
        assert closing, maker
        assert all(each == {"Ingress", "Egress"} for each in types), maker


@pytest.mark.parametrize("name", ["production", "inline", "everything"])
def test_the_hook_has_its_way_before_the_release_has_policies(name: str) -> None:
    """Of the release before, the policy that denies everything is there already; of a first one none is."""
    objects = scenario(name)
    early = [each for each in of_kind(objects, "NetworkPolicy") if is_hook(each)]
    everybody = ends(objects)
    assert len(early) == 1
    assert early[0]["spec"]["podSelector"]["matchLabels"].items() <= everybody["prepare"].labels.items()
    for target in ("database", "internet"):
        both = allowed(of_kind(objects, "NetworkPolicy"), everybody["prepare"], everybody[target], 5432)
        assert allowed(early, everybody["prepare"], everybody[target], 5432) == both
    assert not allowed(early, everybody["prepare"], everybody["internet"], 443)
    assert not allowed(early, everybody["neighbour"], everybody["prepare"], 5432)


def test_without_a_broker_no_port_of_one_is_open() -> None:
    for name in ("laptop-without-broker", "external-without-broker"):
        assert not {each for each in connections(scenario(name)) if each[2] == 4222}


def test_no_policy_unless_it_is_asked_for() -> None:
    assert of_kind(scenario("laptop"), "NetworkPolicy") == []


PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}}


def policy(*rules: Object, direction: str = "Ingress", selector: Object | None = None) -> Object:
    spec = {"podSelector": selector or {}, "policyTypes": [direction], direction.lower(): list(rules)}
    return {"metadata": {"namespace": "a"}, "spec": spec}


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ([], True),
        ([policy()], False),
        ([policy({})], True),
        ([policy({"from": []})], True),
        ([policy(selector={"matchLabels": {"x": "2"}})], True),
        ([policy({"from": [PEER]})], True),
        ([policy({"from": [PEER | {"podSelector": {"matchLabels": {"y": "2"}}}]})], False),
        ([policy({"from": [{"podSelector": {}}]})], False),
        ([policy({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})], False),
        ([policy({"ports": [{"port": 5}]})], False),
        ([policy({"ports": [{"port": 5}]}), policy({"ports": [{"port": 7}]})], True),
        ([policy({"ports": [{"port": 5, "endPort": 9}]})], True),
        ([policy({"ports": [{"port": 7, "protocol": "UDP"}]})], False),
        (
            [policy({"from": [{"namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "Exists"}]}}]})],
            False,
        ),
        ([policy(direction="Egress")], True),
    ],
)
def test_the_evaluator_decides_as_kubernetes_does(policies: list[Object], expected: bool) -> None:
    assert allowed(policies, End("b", {"y": "1"}), End("a", {"x": "1"}), 7) is expected


def test_the_evaluator_asks_both_ends_and_knows_addresses() -> None:
    block = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}
    closed = [policy(block, direction="Egress")]
    start = End("a", {"x": "1"})
    assert allowed(closed, start, End(address="10.2.0.1"), 1)
    assert not allowed(closed, start, End(address="10.1.0.1"), 1)
    assert not allowed(closed, start, End("a", {"x": "1"}), 1)
