"""Services as children: ready when they say so, stopped within a limit, started again where they were."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headrace_core.stack.errors import StackError
from headrace_core.stack.keeping import Backoff, keep_alive
from headrace_core.stack.logs import StackLog
from headrace_core.stack.services import Addresses, Service, inherited_environment
from tests.fixtures.waiting import eventually

# A service in the sense of the contract: it listens, writes its ready file and ends at SIGTERM.
WELL_BEHAVED = """
import json, os, signal, socket, subprocess, sys, threading
host, port = os.environ.get("HEADRACE_LISTEN", "127.0.0.1:0").split(":")
listener = socket.create_server((host, int(port)))
address = "127.0.0.1:%d" % listener.getsockname()[1]
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
if os.environ.get("WORKER"):
    worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print("worker", worker.pid, flush=True)
print("x" * 100_000, flush=True)
path = os.environ["HEADRACE_READY_FILE"]
with open(path + ".tmp", "w") as file:
    json.dump({"grpc": address, "ops": None, "http": None, "pid": os.getpid()}, file)
os.replace(path + ".tmp", path)
end.wait()
"""
DYING = "import sys; print('the reason'); sys.exit(3)"
DEAF = WELL_BEHAVED.replace("lambda *_: end.set()", "signal.SIG_IGN")

Make = Callable[..., Service]


@pytest.fixture
def log(tmp_path: Path) -> StackLog:
    return StackLog(tmp_path / "log")


@pytest.fixture
async def make(tmp_path: Path, log: StackLog) -> AsyncIterator[Make]:
    """Make services out of source texts; all are gone at the end."""
    services: list[Service] = []

    def service(name: str, source: str, *, grace: float = 5.0, **settings: str) -> Service:
        (tmp_path / f"fake_{name}.py").write_text(source)
        environment = inherited_environment(tmp_path) | settings
        services.append(Service(name, f"fake_{name}", environment, log, tmp_path, grace=grace))
        return services[-1]

    yield service
    for made in services:
        await made.kill()
    log.close()


async def test_ready_means_it_said_so_and_stop_is_clean(make: Make) -> None:
    service = make("good", WELL_BEHAVED)
    await service.start()
    assert service.addresses.grpc is not None
    _, writer = await asyncio.open_connection(*service.addresses.grpc.split(":"))
    writer.close()
    await writer.wait_closed()
    assert await service.stop() == 0
    assert await service.stop() == 0
    assert not service.running


async def test_a_second_start_serves_where_the_first_did(make: Make) -> None:
    service = make("again", WELL_BEHAVED)
    await service.start()
    first = service.addresses
    await service.stop()
    await service.start()
    assert service.addresses == first


async def test_death_before_ready_quotes_its_last_lines(make: Make) -> None:
    with pytest.raises(StackError, match=r"exit code 3.*\n  the reason"):
        await make("dying", DYING).start()


async def test_never_ready_is_a_bounded_wait(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_core.stack.services.START_SECONDS", 0.5)
    service = make("silent", "import signal; signal.pause()")
    with pytest.raises(StackError, match="not ready"):
        await service.start()
    assert not service.running


async def test_a_deaf_service_is_killed_after_its_grace(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_core.stack.services.STOP_EXTRA_SECONDS", 0.1)
    service = make("deaf", DEAF, grace=0.2)
    await service.start()
    assert await service.stop() == -signal.SIGKILL


async def test_workers_die_with_their_service(make: Make, log: StackLog, tmp_path: Path) -> None:
    service = make("parent", WELL_BEHAVED, WORKER="yes")
    await service.start()
    text = (tmp_path / "log").read_text()
    worker = next(int(line.split()[-1]) for line in text.splitlines() if "worker" in line)
    await service.kill()
    await eventually(lambda: not Path(f"/proc/{worker}/cmdline").exists() or not is_alive(worker), within=5)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_a_dead_service_is_started_again(make: Make, log: StackLog, tmp_path: Path) -> None:
    service = make("mortal", WELL_BEHAVED)
    await service.start()
    first, address = service.pid, service.addresses
    clock = asyncio.get_running_loop().time
    keeper = asyncio.create_task(keep_alive(service, log, Backoff(0.01, 0.1), clock), name="keeper")
    try:
        service.send(signal.SIGKILL)
        await eventually(lambda: service.running and service.pid != first, within=10)
        await eventually(lambda: service.addresses == address, within=10)
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
    assert "mortal ended (killed by SIGKILL); starting it again" in (tmp_path / "log").read_text()


async def test_output_is_prefixed_and_long_lines_are_cut_in_pieces(make: Make, tmp_path: Path) -> None:
    service = make("wordy", WELL_BEHAVED)
    await service.start()
    await service.stop()
    lines = (tmp_path / "log").read_text().splitlines()
    assert all(line.startswith("wordy ") for line in lines)
    assert sum(line.count("x") for line in lines) == 100_000
    assert max(map(len, lines)) < 70_000


def test_the_ready_file_is_read_in_both_notations() -> None:
    parsed = Addresses.parse('{"grpc": "127.0.0.1:1", "ops": "http://127.0.0.1:2/", "http": null, "pid": 3}')
    assert parsed == Addresses("127.0.0.1:1", "127.0.0.1:2", None)
    with pytest.raises(ValueError, match="JSON object"):
        Addresses.parse("[]")
