"""The deletion cost against a real HTTPS server that speaks this part of the Kubernetes API."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from consumer import deletion_cost
from consumer.deletion_cost import ANNOTATION, DeletionCost, OwnPod, is_news
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.settings.environment import load_settings
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.waiting import eventually

CERTIFICATES = Path(__file__).parents[1] / "fixtures" / "certificates"


@dataclass
class Asked:
    line: str
    headers: dict[str, str]
    body: dict[str, object]

    @property
    def cost(self) -> str:
        return str(self.body["metadata"]["annotations"][ANNOTATION])  # type: ignore[index]


@dataclass
class ApiServer:
    """Answers every request with `status` after noting it; `silent`: takes connections and says nothing."""

    asked: list[Asked] = field(default_factory=list)
    status: str = "200 OK"
    message: str = "pods is forbidden"
    silent: bool = False
    port: int = 0

    def costs(self) -> list[str]:
        return [one.cost for one in self.asked]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            self.asked.append(Asked(head[0], headers, body))
            if self.silent:
                await reader.read()
                return
            answer = json.dumps({"kind": "Status", "message": self.message}).encode()
            writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.pem")
    answering = ApiServer()
    server = await asyncio.start_server(answering.serve, "127.0.0.1", 0, ssl=context)
    answering.port = server.sockets[0].getsockname()[1]
    yield answering
    server.close()
    await server.wait_closed()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """A service account's folder, as the kubelet mounts it."""
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("first\n")
    (folder / "ca.crt").write_bytes((CERTIFICATES / "ca.crt").read_bytes())
    return folder


@pytest.fixture
def pod(api: ApiServer, account: Path) -> OwnPod:
    return OwnPod("consumer-1", "tasks", "127.0.0.1", api.port, account)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion_cost, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(deletion_cost, "AFTER_FAILURE_SECONDS", 0.01)
    monkeypatch.setattr(deletion_cost, "AFTER_REFUSAL_SECONDS", 0.01)
    monkeypatch.setattr(deletion_cost, "STEP_SECONDS", 1.0)


class Load:
    """How many units run."""

    def __init__(self) -> None:
        self.running = 0
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        return self.running


@pytest.fixture
async def load(pod: OwnPod) -> AsyncIterator[Load]:
    """A background task that notes this load is running."""
    load, supervisor = Load(), Supervisor()
    supervisor.spawn("deletion-cost", DeletionCost(pod, load).run)
    yield load
    assert supervisor.failure is None
    assert await supervisor.stop() == []


async def test_the_cost_is_patched_into_the_own_pod_when_it_has_changed(api: ApiServer, load: Load) -> None:
    await eventually(lambda: api.costs() == ["0"])
    (asked,) = api.asked
    assert asked.line == "PATCH /api/v1/namespaces/tasks/pods/consumer-1 HTTP/1.1"
    assert asked.headers["content-type"] == "application/merge-patch+json"
    assert asked.headers["authorization"] == "Bearer first"
    assert asked.body == {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "0"}}}
    load.running = 8
    await eventually(lambda: api.costs() == ["0", "8"])
    load.running = 7
    seen = load.looks
    await eventually(lambda: load.looks > seen + 3)
    load.running = 2**40
    await eventually(lambda: api.costs() == ["0", "8", "2147483647"])
    load.running = 0
    await eventually(lambda: api.costs()[-1] == "0")
    assert len(api.asked) == 4


def test_work_or_none_is_always_news_and_a_small_change_is_not() -> None:
    assert is_news(0, None)
    assert is_news(1, 0)
    assert is_news(0, 100)
    assert is_news(2, 1)
    assert is_news(126, 100)
    assert not is_news(0, 0)
    assert not is_news(120, 100)
    assert not is_news(5, 5)


async def test_a_rotated_token_and_certificate_are_used_at_once(api: ApiServer, account: Path, load: Load) -> None:
    await eventually(lambda: api.asked)
    (account / "ca.crt").write_bytes((CERTIFICATES / "other-ca.crt").read_bytes())
    load.running = 1
    seen = load.looks
    await eventually(lambda: load.looks > seen + 3)
    assert len(api.asked) == 1, "a server that another authority vouches for has got the token"
    (account / "token").write_text("second")
    (account / "ca.crt").write_bytes((CERTIFICATES / "ca.crt").read_bytes())
    await eventually(lambda: len(api.asked) == 2)
    assert api.asked[-1].headers["authorization"] == "Bearer second"


async def test_a_missing_right_is_named_once_and_looked_at_again_rarely(
    api: ApiServer, pod: OwnPod, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    await eventually(lambda: api.asked)
    with capture_logs() as logged:
        api.status = "403 Forbidden"
        load.running = 1
        await eventually(lambda: len(api.asked) > 4)
        api.status = "200 OK"
        asked = len(api.asked)
        await eventually(lambda: len(api.asked) > asked)
        await eventually(lambda: len(logged) > 1)
    assert [line["action"] for line in logged] == ["deletion_cost.unnoted", "deletion_cost.noted_again"]
    assert "lacks the right to patch pods in the namespace tasks" in logged[0]["error"]
    assert "verb patch on the resource pods" in logged[0]["error"]
    monkeypatch.setattr(deletion_cost, "AFTER_REFUSAL_SECONDS", 300.0)
    api.status = "403 Forbidden"
    assert await DeletionCost(pod, load)._look() == 300.0


def _silent(api: ApiServer, _account: Path) -> None:
    api.silent = True


def _failing(api: ApiServer, _account: Path) -> None:
    api.status = "500 Internal Server Error"


def _unknown_pod(api: ApiServer, _account: Path) -> None:
    api.status, api.message = "404 Not Found", 'pods "consumer-1" not found'


def _without_token(_api: ApiServer, account: Path) -> None:
    (account / "token").unlink()


def _spoilt_token(_api: ApiServer, account: Path) -> None:
    (account / "token").write_bytes("tökén\r\nX: y".encode())


def _without_certificate(_api: ApiServer, account: Path) -> None:
    (account / "ca.crt").write_text("no certificate")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_silent, "timed out"),
        (_failing, "500 Internal Server Error"),
        (_unknown_pod, 'pods "consumer-1" not found'),
        (_without_token, "token"),
        (_spoilt_token, "ascii"),
        (_without_certificate, ""),
    ],
)
async def test_whatever_fails_is_said_once_and_harms_nothing(
    api: ApiServer, account: Path, pod: OwnPod, spoil: Callable[[ApiServer, Path], None], says: str
) -> None:
    spoil(api, account)
    cost = DeletionCost(pod, lambda: 1)
    with capture_logs() as logged:
        assert await cost._look() == deletion_cost.AFTER_FAILURE_SECONDS
        assert await cost._look() == deletion_cost.AFTER_FAILURE_SECONDS
    assert [line["action"] for line in logged] == ["deletion_cost.unnoted"]
    assert says in logged[0]["error"]


async def test_outside_of_a_cluster_it_says_so() -> None:
    environ = {
        "HEADRACE_POD_DELETION_COST": "true",
        "HEADRACE_POD_NAME": "consumer-1",
        "HEADRACE_POD_NAMESPACE": "tasks",
    }
    pod = OwnPod.of(load_settings(environ, default_listen="127.0.0.1:0"), {})
    with capture_logs() as logged:
        await DeletionCost(pod, lambda: 1)._look()
    assert "KUBERNETES_SERVICE_HOST is not set" in logged[0]["error"]


async def test_a_consumer_notes_what_runs_until_it_drains(
    rig: ConsumerRig, api: ApiServer, account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
    monkeypatch.setattr(deletion_cost, "ACCOUNT", account)
    settings = {"pod_deletion_cost": "true", "pod_name": "consumer-1", "pod_namespace": "tasks"}
    consumer = await rig.consumer(handlers="tests.handlers.held", **settings)
    await eventually(lambda: api.costs() == ["0"])
    release = tmp_path / "release"
    tasks = [await rig.submit("held", {"release": str(release)}) for _ in range(3)]
    await eventually(lambda: api.costs()[-1] == "3")
    release.touch()
    for task in tasks:
        await rig.ended(task)
    await eventually(lambda: api.costs()[-1] == "0")
    release.unlink()
    await rig.submit("held", {"release": str(release)})
    await eventually(lambda: api.costs()[-1] == "1")
    await rig.stop(consumer)
    assert api.costs()[-1] == "1", "the cost of a pod that ends concerns nobody"
