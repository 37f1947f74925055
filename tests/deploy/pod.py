"""A pod of the chart as processes on this machine: what the rendered object says is what runs.

Commands, environment, mounted texts, probes, preStop and the grace period are the object's. Different from a node: the
pod's address is one of 127.0.0.0/8, so every port is as rendered; a path below a mount point leads into the pod's own
folder; names of Services in addresses are looked up in the cluster's DNS.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from headrace_core.stack.child import Child
from headrace_core.stack.logs import StackLog
from tests.deploy import manifest
from tests.deploy.manifest import Identity, Object, Objects

ANY_ADDRESS = "0.0.0.0"
INIT_SECONDS = 60.0
DEFAULT_PERIOD, DEFAULT_THRESHOLD, DEFAULT_TIMEOUT = 10.0, 3, 1.0

Locate = Callable[[str], str]


@dataclass(frozen=True)
class Images:
    """What is in the images: variables that they set, and the programs of those whose containers name none."""

    variables: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By repository; `0.0.0.0` in an argument becomes the pod's address."""

    def program(self, container: Object) -> list[str]:
        """What runs where the container has no command."""
        repository = container["image"].partition(":")[0]
        return [] if "command" in container else list(self.programs[repository])


@dataclass(frozen=True)
class Ending:
    """How a container ended: exit code, seconds since the pod was to be deleted, and the limit for that."""

    code: int
    seconds: float
    limit: float


class Pod:
    """One pod. `locate` turns what an address says (a Service's name) into what can be reached here."""

    def __init__(
        self,
        template: Object,
        identity: Identity,
        objects: Objects,
        folder: Path,
        log: StackLog,
        *,
        locate: Locate = lambda text: text,
        images: Images,
    ) -> None:
        self.identity = identity
        self.labels: dict[str, str] = template["metadata"]["labels"]
        self.spec: Object = template["spec"]
        self.ready = False
        self.terminating = False
        self.liveness_failures = 0
        self._objects = objects
        self._folder = folder
        self._log = log
        self._locate = locate
        self._images = images
        self._child: Child | None = None
        self._prober: asyncio.Task[None] | None = None

    @property
    def container(self) -> Object:
        """The one container."""
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._child is not None and self._child.returncode is None

    async def start(self) -> None:
        """Run the init containers, start the container, and wait until its probes say that it is ready."""
        self._lay_files()
        for container in self.spec.get("initContainers", []):
            code, said = await self._run(container)
            assert code == 0, f"{self.identity.name}: {container['name']} ended with {code}{said}"
        self._child = await self._spawn(self.container)
        await self._until_started()
        self._prober = asyncio.create_task(self._probe_for_ever(), name=f"probes of {self.identity.name}")

    async def run_to_end(self) -> tuple[int, str]:
        """Run the init containers and the container of a job; the last exit code, and what was said last."""
        self._lay_files()
        for container in self.spec.get("initContainers", []):
            code, said = await self._run(container)
            if code:
                return code, said
        return await self._run(self.container)

    async def delete(self) -> Ending:
        """As a node deletes a pod: preStop, SIGTERM, and SIGKILL when the grace period is over."""
        assert self._child is not None
        began = _now()
        self.terminating = True
        limit = float(self.spec["terminationGracePeriodSeconds"])
        await asyncio.sleep(_pre_stop_seconds(self.container))
        code = await self._child.stop(((signal.SIGTERM, limit - (_now() - began)),))
        await self._end_probes()
        return Ending(code, _now() - began, limit)

    async def kill(self) -> None:
        """Take the pod away, however far it came. Idempotent."""
        await self._end_probes()
        if self._child is not None:
            await self._child.kill()

    async def passes(self, kind: str) -> bool:
        """Whether a probe (`readinessProbe`, …) says yes now."""
        probe = self.container[kind]
        timeout = float(probe.get("timeoutSeconds", DEFAULT_TIMEOUT))
        check = self._check_grpc if "grpc" in probe else self._check_http
        try:
            async with asyncio.timeout(timeout):
                return await check(probe)
        except (TimeoutError, OSError):
            return False

    async def _until_started(self) -> None:
        """The start-up probe decides first, then readiness; each within its own threshold."""
        for kind in ("startupProbe", "readinessProbe"):
            probe = self.container.get(kind)
            if probe is None:
                continue
            for _ in range(int(probe.get("failureThreshold", DEFAULT_THRESHOLD))):
                assert self.running, f"{self.identity.name} ended: {self._child.last_lines() if self._child else ''}"
                if await self.passes(kind):
                    break
                await asyncio.sleep(float(probe.get("periodSeconds", DEFAULT_PERIOD)))
            else:
                raise AssertionError(f"{self.identity.name}: {kind} never passed")
        self.ready = True

    async def _probe_for_ever(self) -> None:
        probe = self.container["readinessProbe"]
        while True:
            await asyncio.sleep(float(probe.get("periodSeconds", DEFAULT_PERIOD)))
            self.ready = await self.passes("readinessProbe")
            if not self.terminating and not await self.passes("livenessProbe"):
                self.liveness_failures += 1

    async def _end_probes(self) -> None:
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait({self._prober})

    async def _check_grpc(self, probe: Object) -> bool:
        async with grpc.aio.insecure_channel(f"{self.identity.address}:{probe['grpc']['port']}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            try:
                answer = await stub.Check(request)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _check_http(self, probe: Object) -> bool:
        number = manifest.port(self.container, probe["httpGet"]["port"])
        reader, writer = await asyncio.open_connection(self.identity.address, number)
        try:
            writer.write(f"GET {probe['httpGet'].get('path', '/')} HTTP/1.0\r\nHost: pod\r\n\r\n".encode())
            status = int((await reader.readline()).split()[1])
        finally:
            writer.close()
        return 200 <= status < 400

    async def _run(self, container: Object) -> tuple[int, str]:
        child = await self._spawn(container)
        try:
            async with asyncio.timeout(INIT_SECONDS):
                await child.wait()
        finally:
            code = await child.kill()
        return code, child.last_lines()

    async def _spawn(self, container: Object) -> Child:
        variables = manifest.environment(container, self.identity, self._objects)
        variables = {name: self._here(value, container) for name, value in variables.items()}
        program = [word.replace(ANY_ADDRESS, self.identity.address) for word in self._images.program(container)]
        program += [self._here(word, container) for word in manifest.command(container, variables)]
        path = f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"
        return await Child.spawn(
            f"{self.identity.name}.{container['name']}",
            program,
            self._log,
            environment={"PATH": path, "HOME": str(self._folder), **self._images.variables, **variables},
            working_folder=self._folder,
        )

    def _here(self, text: str, container: Object) -> str:
        """The text of an environment or a command, as it has to be on this machine."""
        option, separator, value = text.partition("=") if text.startswith("--") else ("", "", text)
        for mount in container.get("volumeMounts", []):
            if value == mount["mountPath"] or value.startswith(f"{mount['mountPath']}/"):
                return f"{option}{separator}{self._folder}{value}"
        return self._locate(text.replace(ANY_ADDRESS, self.identity.address))

    def _lay_files(self) -> None:
        texts = manifest.files(self.spec, self._objects)
        for container in [*self.spec.get("initContainers", []), *self.spec["containers"]]:
            for mount in container.get("volumeMounts", []):
                place = Path(f"{self._folder}{mount['mountPath']}")
                self._lay(mount, place, texts.get(mount["name"], {}))

    def _lay(self, mount: Object, place: Path, texts: dict[str, str]) -> None:
        if "subPath" in mount:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(texts[mount["subPath"]], encoding="utf-8")
            return
        place.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")


def pod_template(owner: Object) -> dict[str, Any]:
    """The pod that a Deployment, StatefulSet or Job makes; a Pod is its own."""
    if owner["kind"] == "Pod":
        return {"metadata": {"labels": {}, **owner["metadata"]}, "spec": owner["spec"]}
    template: dict[str, Any] = owner["spec"]["template"]
    return template


def _pre_stop_seconds(container: Object) -> float:
    return float(container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))


def _now() -> float:
    return asyncio.get_running_loop().time()
