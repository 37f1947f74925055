"""How much is lost where this pod is removed, told to Kubernetes: it removes the pods with the least cost first.

The annotation `controller.kubernetes.io/pod-deletion-cost` of the consumer's own pod holds how many units run here, so
that fewer replicas means: those that have nothing to do. A hint: a busy pod that is removed all the same drains.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from headrace_core.settings.environment import ServiceSettings
from headrace_core.telemetry import logs

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HIGHEST = 2**31 - 1
# Between two looks: every note is a write to the cluster's own database.
LOOK_SECONDS = 5.0
AFTER_FAILURE_SECONDS = 30.0
AFTER_REFUSAL_SECONDS = 300.0
# For each step of a call: connecting, the handshake, the answer.
STEP_SECONDS = 3.0
MOST_READ = 64 * 1024

log = logs.get(__name__)


class PodRefused(Exception):
    """The API server has answered with an error. `status` is HTTP's; the text is a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class OwnPod:
    """This pod as the API server knows it, and how to reach that server from within the cluster."""

    name: str
    namespace: str
    host: str
    port: int
    account: Path
    """The folder of the service account: `token` and `ca.crt`."""

    @classmethod
    def of(cls, settings: ServiceSettings, environ: Mapping[str, str]) -> OwnPod:
        """As the settings and the variables of Kubernetes say. Outside of a cluster the host is empty."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
        return cls(settings.pod_name, settings.pod_namespace, host, int(port) if port.isdigit() else 443, ACCOUNT)

    def annotate(self, cost: int) -> None:
        """Write the cost into the pod's annotation. Blocks for some seconds at most.

        Raises PodRefused, and OSError or HTTPException for everything on the way there.
        """
        if not self.host:
            raise OSError("KUBERNETES_SERVICE_HOST is not set: this is no pod of a cluster")
        # Read anew each time: the token is replaced every hour, the certificate when the cluster says so.
        token = (self.account / "token").read_text(encoding="ascii").strip()
        context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=STEP_SECONDS, context=context)
        try:
            connection.request("PATCH", self._path(), body=_patch(cost), headers=_headers(token))
            answer = connection.getresponse()
            text = answer.read(MOST_READ)
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise PodRefused(answer.status, f"{answer.status} {answer.reason}: {_message(text)}")

    def _path(self) -> str:
        return f"/api/v1/namespaces/{quote(self.namespace, safe='')}/pods/{quote(self.name, safe='')}"


class DeletionCost:
    """Keeps the annotation up to date. `run` is a background task; nothing that goes wrong in it harms the consumer."""

    def __init__(self, pod: OwnPod, running: Callable[[], int]) -> None:
        """`running`: how many units run here now."""
        self._pod = pod
        self._running = running
        self._noted: int | None = None
        self._trouble = ""

    async def run(self) -> None:
        """Note the cost when it has changed, at most every few seconds."""
        while True:
            pause = await self._look()
            await asyncio.sleep(pause)

    async def _look(self) -> float:
        """Note the cost if that is news; returns the seconds until the next look."""
        cost = min(self._running(), HIGHEST)
        if not is_news(cost, self._noted):
            return LOOK_SECONDS
        try:
            await asyncio.to_thread(self._pod.annotate, cost)
        except PodRefused as error:
            if error.status == http.HTTPStatus.FORBIDDEN:
                self._warn("forbidden", f"{self._right()}: {error}")
                return AFTER_REFUSAL_SECONDS
            self._warn(f"status {error.status}", str(error))
            return AFTER_FAILURE_SECONDS
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._warn(type(error).__name__, str(error) or type(error).__name__)
            return AFTER_FAILURE_SECONDS
        self._note(cost)
        return LOOK_SECONDS

    def _note(self, cost: int) -> None:
        self._noted = cost
        if self._trouble:
            self._trouble = ""
            log.info("the deletion cost is noted again", action="deletion_cost.noted_again", cost=cost)

    def _warn(self, trouble: str, why: str) -> None:
        """Once for each kind of trouble, until there is another or none."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("the deletion cost of this pod is not noted", action="deletion_cost.unnoted", error=why)

    def _right(self) -> str:
        return (
            f"the pod's service account lacks the right to patch pods in the namespace {self._pod.namespace}: bind it "
            "to a role with the verb patch on the resource pods, or set HEADRACE_POD_DELETION_COST to false"
        )


def is_news(cost: int, noted: int | None) -> bool:
    """Whether a cost is worth a write: work or none, or a change by more than a quarter of what was noted."""
    if noted is None or (cost == 0) != (noted == 0):
        return True
    return abs(cost - noted) * 4 > noted


def _patch(cost: int) -> bytes:
    return json.dumps({"metadata": {"annotations": {ANNOTATION: str(cost)}}}).encode()


def _headers(token: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/merge-patch+json",
        "Accept": "application/json",
    }


def _message(text: bytes) -> str:
    """What a Status object of the API says, or the beginning of whatever it is."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200].decode(errors="replace")
