"""What a kubelet reads in the objects: environments, files, ports. No I/O."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True)
class Identity:
    """What a pod's fields say of it."""

    name: str
    namespace: str
    address: str


class Objects:
    """The objects of a namespace, by kind and name."""

    def __init__(self, objects: Iterable[Object]) -> None:
        self._objects = {(one["kind"], one["metadata"]["name"]): one for one in objects}

    def add(self, one: Object) -> None:
        """Apply an object."""
        self._objects[one["kind"], one["metadata"]["name"]] = one

    def get(self, kind: str, name: str) -> Object:
        """The object; AssertionError names what is missing, as a pod that waits for it would."""
        assert (kind, name) in self._objects, f"no {kind} {name!r}; a pod that needs it does not start"
        return self._objects[kind, name]

    def all(self, kind: str) -> list[Object]:
        """The objects of a kind."""
        return [one for (found, _), one in self._objects.items() if found == kind]

    def value(self, kind: str, name: str, key: str) -> str:
        """One key of a Secret or ConfigMap."""
        values = data(self.get(kind, name))
        assert key in values, f"{kind} {name!r} has no key {key!r}; it has {sorted(values)}"
        return values[key]


def secret(name: str, **values: str) -> Object:
    """A Secret that somebody has made before the installation."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}


def data(one: Object) -> dict[str, str]:
    """The values of a Secret or ConfigMap."""
    encoded = one.get("data") or {}
    if one["kind"] == "Secret":
        encoded = {key: base64.b64decode(value).decode() for key, value in encoded.items()}
    return {**encoded, **(one.get("stringData") or {})}


def environment(container: Object, identity: Identity, objects: Objects) -> dict[str, str]:
    """The variables of a container, in the order in which Kubernetes resolves them."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        kind, reference = _source(source)
        found |= data(objects.get(kind, reference["name"]))
    for variable in container.get("env", []):
        found[variable["name"]] = _expanded(_value(variable, identity, objects), found)
    return found


def command(container: Object, variables: Mapping[str, str]) -> list[str]:
    """The program and its arguments."""
    return [_expanded(word, variables) for word in [*container.get("command", []), *container.get("args", [])]]


def port(container: Object, wanted: str | int) -> int:
    """A port of a container by number or name."""
    if isinstance(wanted, int):
        return wanted
    named = {one["name"]: one["containerPort"] for one in container.get("ports", [])}
    assert wanted in named, f"container {container['name']} has no port {wanted!r}; it has {sorted(named)}"
    number: int = named[wanted]
    return number


def files(spec: Object, objects: Objects) -> dict[str, dict[str, str]]:
    """Volume name to file name to text, of the volumes that ConfigMaps and Secrets fill."""
    found: dict[str, dict[str, str]] = {}
    for volume in spec.get("volumes", []):
        for kind, field, key in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
            if field in volume:
                found[volume["name"]] = _projected(volume[field], data(objects.get(kind, volume[field][key])))
    return found


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a Service's selector takes a pod."""
    return bool(selector) and selector.items() <= labels.items()


def _projected(volume: Object, values: dict[str, str]) -> dict[str, str]:
    if items := volume.get("items"):
        return {item["path"]: values[item["key"]] for item in items}
    return values


def _source(source: Object) -> tuple[str, Object]:
    if "secretRef" in source:
        return "Secret", source["secretRef"]
    return "ConfigMap", source["configMapRef"]


def _value(variable: Object, identity: Identity, objects: Objects) -> str:
    if "valueFrom" not in variable:
        return str(variable.get("value", ""))
    source = variable["valueFrom"]
    if "fieldRef" in source:
        fields = {
            "metadata.name": identity.name,
            "metadata.namespace": identity.namespace,
            "status.podIP": identity.address,
        }
        return fields[source["fieldRef"]["fieldPath"]]
    kind, field = ("Secret", "secretKeyRef") if "secretKeyRef" in source else ("ConfigMap", "configMapKeyRef")
    return objects.value(kind, source[field]["name"], source[field]["key"])


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    return VARIABLE.sub(lambda match: variables.get(match[1], match[0]), text)
