"""What NetworkPolicies allow, decided as Kubernetes defines it. Pure: objects in, yes or no out.

A pod that no policy of a direction selects is free in it; any other may do what some rule of some policy allows. A
connection needs both: egress of where it starts and ingress of where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Literal

Object = dict[str, Any]
Direction = Literal["Ingress", "Egress"]


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, by namespace and labels, or an address outside the cluster."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""

    @property
    def is_pod(self) -> bool:
        return bool(self.namespace)


def allowed(policies: Sequence[Object], start: End, end: End, port: int, protocol: str = "TCP") -> bool:
    """Whether `start` may connect to that port of `end`."""
    leaves = _may(policies, "Egress", start, end, port, protocol)
    return leaves and admitted(policies, start, end, port, protocol)


def admitted(policies: Sequence[Object], start: End, end: End, port: int, protocol: str = "TCP") -> bool:
    """The half of `allowed` that `end` decides."""
    return _may(policies, "Ingress", end, start, port, protocol)


def _may(policies: Sequence[Object], direction: Direction, own: End, other: End, port: int, protocol: str) -> bool:
    applying = [each for each in policies if own.is_pod and _applies(each, direction, own)]
    rules = [rule for each in applying for rule in each["spec"].get(direction.lower(), [])]
    return not applying or any(
        _to_port(rule, port, protocol) and _with_peer(rule, direction, own.namespace, other) for rule in rules
    )


def _applies(policy: Object, direction: Direction, pod: End) -> bool:
    types = policy["spec"].get("policyTypes", ["Ingress"])
    own = policy["metadata"]["namespace"] == pod.namespace
    return own and direction in types and selects(policy["spec"]["podSelector"], pod.labels)


def _to_port(rule: Object, port: int, protocol: str) -> bool:
    """No list, or an empty one, is every port."""
    ports = rule.get("ports") or []
    return not ports or any(
        each.get("protocol", "TCP") == protocol
        and ("port" not in each or each["port"] <= port <= each.get("endPort", each["port"]))
        for each in ports
    )


def _with_peer(rule: Object, direction: Direction, namespace: str, other: End) -> bool:
    """No list, or an empty one, is everybody."""
    peers = rule.get("from" if direction == "Ingress" else "to") or []
    return not peers or any(_is_peer(peer, namespace, other) for peer in peers)


def _is_peer(peer: Object, namespace: str, other: End) -> bool:
    if "ipBlock" in peer:
        return bool(other.address) and _within(peer["ipBlock"], other.address)
    if not other.is_pod:
        return False
    if "namespaceSelector" in peer:
        in_namespace = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        in_namespace = other.namespace == namespace
    return in_namespace and selects(peer.get("podSelector", {}), other.labels)


def _within(block: Object, address: str) -> bool:
    found = ip_address(address)
    return found in ip_network(block["cidr"]) and not any(found in ip_network(cut) for cut in block.get("except", []))


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector chooses these labels. An empty one chooses everything."""
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(_holds(each, labels) for each in selector.get("matchExpressions", []))


def _holds(expression: Object, labels: dict[str, str]) -> bool:
    value = labels.get(expression["key"])
    values = expression.get("values", [])
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
    return value is None
