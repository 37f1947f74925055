"""A cluster of one namespace on loopback: it installs what the chart renders, and rolls it out as Kubernetes does."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace_core.stack.logs import StackLog
from tests.deploy import manifest
from tests.deploy.dns import DnsServer
from tests.deploy.manifest import Identity, Object, Objects
from tests.deploy.pod import Ending, Images, Pod, pod_template

HOOK = "helm.sh/hook"
SERVICE_ADDRESS = re.compile(r"(?P<scheme>[a-z]+)://(?P<login>[^@/]*@)?(?P<name>[a-z][a-z0-9.-]*):(?P<port>\d+)")


class Cluster:
    """Use as `async with`. `elsewhere`: workloads that run outside of it, to the host:port of their Services."""

    def __init__(
        self,
        objects: Iterable[Object],
        folder: Path,
        *,
        namespace: str = "default",
        elsewhere: Mapping[str, str] | None = None,
        images: Images | None = None,
    ) -> None:
        self.objects = Objects(objects)
        self.pods: list[Pod] = []
        self.endings: list[Ending] = []
        self.namespace = namespace
        self.log = StackLog(folder / "cluster.log")
        # Every session and every test has a network of its own: the ports in it are as rendered.
        self._network = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}"
        self._numbers = itertools.count(10)
        self._folder = folder
        self._elsewhere = dict(elsewhere or {})
        self._images = images or Images()
        self._dns = DnsServer(self._resolve)

    async def __aenter__(self) -> Self:
        await self._dns.start(f"{self._network}.2")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(pod.kill() for pod in self.pods))
        self._dns.stop()
        self.log.close()

    def target(self, service: str, port: int) -> str:
        """The gRPC target by which clients in the cluster reach a Service."""
        return f"dns://{self._dns.address}/{service}:{port}"

    async def run_hooks(self, event: str) -> None:
        """Run the jobs and pods of a hook to their ends, in the order of their weights. AssertionError if one fails."""
        hooks = [one for kind in ("Job", "Pod") for one in self.objects.all(kind) if event in _hooks(one)]
        for hook in sorted(hooks, key=_weight):
            code, said = await self.run_job(hook)
            assert code == 0, f"hook {hook['metadata']['name']} ended with {code}{said}"

    async def run_job(self, job: Object) -> tuple[int, str]:
        """Run the pod of a job to its end; its exit code, and what it said last."""
        pod = self._pod(job)
        self.pods.append(pod)
        try:
            return await pod.run_to_end()
        finally:
            self.pods.remove(pod)

    async def start(self, kind: str = "Deployment") -> None:
        """Start the pods of every workload of that kind, side by side, and wait until they are ready."""
        workloads = [one for one in self.objects.all(kind) if one["metadata"]["name"] not in self._elsewhere]
        await asyncio.gather(*(self._start(one) for one in workloads for _ in range(self._replicas(one))))

    async def roll_out(self, objects: Iterable[Object] | None = None) -> None:
        """Replace every pod, one at a time in each Deployment: the new one is ready before the old one has to go."""
        for one in objects or ():
            self.objects.add(one)
        await asyncio.gather(*(self._roll(one) for one in self.objects.all("Deployment")))

    async def stop(self) -> None:
        """Delete every pod; `endings` tells how they ended."""
        self.endings += await asyncio.gather(*(pod.delete() for pod in self.pods))
        self.pods.clear()

    def pods_of(self, selector: Mapping[str, str]) -> list[Pod]:
        """The pods that a selector takes."""
        return [pod for pod in self.pods if manifest.matches(selector, pod.labels)]

    async def _roll(self, workload: Object) -> None:
        for old in self.pods_of(workload["spec"]["selector"]["matchLabels"]):
            await self._start(workload)
            self.endings.append(await old.delete())
            self.pods.remove(old)

    async def _start(self, workload: Object) -> None:
        pod = self._pod(workload)
        self.pods.append(pod)
        await pod.start()

    def _pod(self, owner: Object) -> Pod:
        number = next(self._numbers)
        name = f"{owner['metadata']['name']}-{number}"
        identity = Identity(name, self.namespace, f"{self._network}.{number}")
        folder = self._folder / name
        folder.mkdir(parents=True)
        return Pod(
            pod_template(owner), identity, self.objects, folder, self.log, locate=self._locate, images=self._images
        )

    def _replicas(self, workload: Object) -> int:
        """As many pods as it says, or the fewest that its scaler allows."""
        if "replicas" in workload["spec"]:
            return int(workload["spec"]["replicas"])
        name = workload["metadata"]["name"]
        for kind, fewest in (("HorizontalPodAutoscaler", "minReplicas"), ("ScaledObject", "minReplicaCount")):
            for scaler in self.objects.all(kind):
                if scaler["spec"]["scaleTargetRef"]["name"] == name:
                    return int(scaler["spec"][fewest])
        raise AssertionError(f"nobody says how many pods {name} has")

    def _resolve(self, name: str) -> list[str] | None:
        """The ready pods of a Service. Search domains and the cluster's domain come after the first label."""
        services = {one["metadata"]["name"]: one for one in self.objects.all("Service")}
        service = services.get(_short(name))
        if service is None:
            return None
        pods = self.pods_of(service["spec"]["selector"])
        return [pod.identity.address for pod in pods if pod.ready and not pod.terminating]

    def _locate(self, text: str) -> str:
        """An address in a pod's environment or command, with a Service's name in it, as it is reached from here."""
        if text.startswith("dns:///"):
            return f"dns://{self._dns.address}/{text.removeprefix('dns:///')}"
        return SERVICE_ADDRESS.sub(self._located, text)

    def _located(self, match: re.Match[str]) -> str:
        head = f"{match['scheme']}://{match['login'] or ''}"
        name = _short(match["name"])
        if name in self._elsewhere:
            return head + self._elsewhere[name]
        found = self._resolve(name)
        return f"{head}{found[0]}:{match['port']}" if found else match[0]


def _short(name: str) -> str:
    """A Service's own name, without namespace and domain."""
    return name.split(".", maxsplit=1)[0]


def _hooks(one: Object) -> list[str]:
    return str(one["metadata"].get("annotations", {}).get(HOOK, "")).split(",")


def _weight(one: Object) -> int:
    return int(one["metadata"].get("annotations", {}).get(f"{HOOK}-weight", "0"))
