"""Our scaler speaks KEDA's protocol: the same names, numbers, types and methods as KEDA's own file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from status.keda import external_scaler_pb2
from tests.deploy.tools import schema


def compiled(proto: Path, folder: Path) -> FileDescriptorProto:
    """The descriptor of a .proto file that imports nothing."""
    shutil.copy(proto, folder)
    buf = Path(sys.executable).with_name("buf")
    built = subprocess.run([buf, "build", folder, "-o", "-#format=binpb"], check=True, capture_output=True, timeout=30)
    (found,) = FileDescriptorSet.FromString(built.stdout).file
    return found


def ours() -> FileDescriptorProto:
    found = descriptor_pb2.FileDescriptorProto()
    external_scaler_pb2.DESCRIPTOR.CopyToProto(found)
    return found


def messages(found: list[DescriptorProto], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Every message with its fields: number, type, whether repeated, and of which message."""
    everything: dict[str, dict[str, Any]] = {}
    for message in found:
        name = prefix + message.name
        everything[name] = {
            field.name: (field.number, field.type, field.label, field.type_name) for field in message.field
        }
        everything |= messages(list(message.nested_type), f"{name}.")
    return everything


def methods(file: FileDescriptorProto) -> dict[str, tuple[str, bool, str, bool]]:
    return {
        f"/{file.package}.{service.name}/{method.name}": (
            method.input_type,
            method.client_streaming,
            method.output_type,
            method.server_streaming,
        )
        for service in file.service
        for method in service.method
    }


def test_our_messages_and_methods_are_kedas(tmp_path: Path) -> None:
    theirs = compiled(schema("externalscaler.proto"), tmp_path)
    mine = ours()
    assert (mine.package, mine.syntax) == (theirs.package, theirs.syntax)
    assert messages(list(mine.message_type)) == messages(list(theirs.message_type))
    assert methods(mine) == methods(theirs)
    assert len(methods(mine)) == 4


def test_the_contract_as_it_was_when_we_wrote_it() -> None:
    """KEDA's file is fetched and may be missing or newer; this is what is running in clusters."""
    found = messages(list(ours().message_type))
    assert {name: {field: numbers[0] for field, numbers in fields.items()} for name, fields in found.items()} == {
        "ScaledObjectRef": {"name": 1, "namespace": 2, "scalerMetadata": 3},
        "ScaledObjectRef.ScalerMetadataEntry": {"key": 1, "value": 2},
        "IsActiveResponse": {"result": 1},
        "GetMetricSpecResponse": {"metricSpecs": 1},
        "MetricSpec": {"metricName": 1, "targetSize": 2, "targetSizeFloat": 3},
        "GetMetricsRequest": {"scaledObjectRef": 1, "metricName": 2},
        "GetMetricsResponse": {"metricValues": 1},
        "MetricValue": {"metricName": 1, "metricValue": 2, "metricValueFloat": 3},
    }
    assert methods(ours()) == {
        "/externalscaler.ExternalScaler/IsActive": (
            ".externalscaler.ScaledObjectRef", False, ".externalscaler.IsActiveResponse", False,
        ),
        "/externalscaler.ExternalScaler/StreamIsActive": (
            ".externalscaler.ScaledObjectRef", False, ".externalscaler.IsActiveResponse", True,
        ),
        "/externalscaler.ExternalScaler/GetMetricSpec": (
            ".externalscaler.ScaledObjectRef", False, ".externalscaler.GetMetricSpecResponse", False,
        ),
        "/externalscaler.ExternalScaler/GetMetrics": (
            ".externalscaler.GetMetricsRequest", False, ".externalscaler.GetMetricsResponse", False,
        ),
    }  # fmt: skip
