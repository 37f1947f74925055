"""Servers of a peer: new and empty, on loopback. Postgres and NATS are those of the local stack, with its settings."""

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from bench.peers.catalog import PROGRAMS, Peer, Server
from headrace_core.stack.child import Child
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.stack.ports import LOOPBACK, free_port
from headrace_core.stack.postgres import Postgres

START_SECONDS = 60.0
STOP_PHASES = ((signal.SIGTERM, 15.0),)
RABBITMQ_FOLDER = Path("/usr/lib/rabbitmq/bin")


class Servers:
    """What runs: `addresses` for the environment of workers and clients, `processes` whose CPU counts."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.processes: dict[str, int] = {}


def missing(peer: Peer) -> list[str]:
    """Return a sentence for everything that `peer` needs and this machine has not, with how to get it."""
    wanted = [PROGRAMS[name] for name in sorted(peer.servers) if name in PROGRAMS]
    absent = [(program, command) for program, command in wanted if shutil.which(program, path=_search_path()) is None]
    if not peer.python.exists():
        absent.append((f"the environment {peer.environment}", "make bench-peers"))
    return [f"{peer.name} is left out: it needs {what}; get it with: {command}" for what, command in absent]


def _search_path() -> str:
    # Where Debian puts rabbitmq-server, which is on the path of root only.
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))


@contextlib.asynccontextmanager
async def running(names: frozenset[Server], folder: Path, log: StackLog) -> AsyncIterator[Servers]:
    """Run the named servers with their data in `folder`. Raises StackError when one does not start."""
    servers = Servers()
    async with contextlib.AsyncExitStack() as cleanup:
        if "postgres" in names:
            await _postgres(servers, folder, log, cleanup)
        if "nats" in names:
            await _nats(servers, folder, log, cleanup)
        if "redis" in names:
            await _redis(servers, folder, log, cleanup)
        if "rabbitmq" in names:
            await _rabbitmq(servers, folder, log, cleanup)
        yield servers


async def _postgres(servers: Servers, folder: Path, log: StackLog, cleanup: contextlib.AsyncExitStack) -> None:
    postgres = Postgres(folder / "postgres", log)
    cleanup.push_async_callback(postgres.stop)
    await postgres.start()
    assert postgres.pid is not None
    servers.addresses["PEER_POSTGRES_URL"] = await postgres.create_database("peer")
    servers.processes["postgres"] = postgres.pid


async def _nats(servers: Servers, folder: Path, log: StackLog, cleanup: contextlib.AsyncExitStack) -> None:
    nats = NatsServer(folder / "nats", log)
    cleanup.push_async_callback(nats.stop)
    await nats.start()
    assert nats.pid is not None
    servers.addresses["PEER_NATS_URL"] = nats.url
    servers.processes["nats"] = nats.pid


async def _redis(servers: Servers, folder: Path, log: StackLog, cleanup: contextlib.AsyncExitStack) -> None:
    port, data = free_port(), folder / "redis"
    data.mkdir()
    # The append-only file, synced every second, is what its documentation recommends for data that matter.
    options = {"port": str(port), "bind": LOOPBACK, "dir": str(data), "appendonly": "yes", "save": ""}
    program = ["redis-server", *(part for name, value in options.items() for part in (f"--{name}", value))]
    child = await _child("redis", program, log, cleanup)
    await child.until(lambda: _listens(port), within=START_SECONDS, what="listening")
    servers.addresses["PEER_REDIS_URL"] = f"redis://{LOOPBACK}:{port}"
    servers.processes["redis"] = child.pid


async def _rabbitmq(servers: Servers, folder: Path, log: StackLog, cleanup: contextlib.AsyncExitStack) -> None:
    data = folder / "rabbitmq"
    data.mkdir()
    port, names_port, peers_port = free_port(), free_port(), free_port()
    (data / "rabbitmq.conf").write_text(f"listeners.tcp.1 = {LOOPBACK}:{port}\n")
    (data / "enabled_plugins").write_text("[].\n")
    environment = _rabbitmq_environment(data, names_port, peers_port)
    # A name server of our own: the one that Erlang starts by itself would stay behind.
    program = ["epmd", "-port", str(names_port), "-address", LOOPBACK]
    names = await _child("epmd", program, log, cleanup)
    await names.until(lambda: _listens(names_port), within=START_SECONDS, what="listening")
    child = await _child("rabbitmq", [_rabbitmq_server()], log, cleanup, environment)
    ready = "Server startup complete"
    await child.until(lambda: any(ready in line for line in child.tail), within=START_SECONDS, what=f"saying {ready!r}")
    servers.addresses["PEER_AMQP_URL"] = f"amqp://guest:guest@{LOOPBACK}:{port}/"
    servers.processes["rabbitmq"] = child.pid


def _rabbitmq_server() -> str:
    """Return the program itself: what Debian puts on the path changes the user first."""
    program = RABBITMQ_FOLDER / "rabbitmq-server"
    return str(program) if program.exists() else "rabbitmq-server"


def _rabbitmq_environment(data: Path, names_port: int, peers_port: int) -> dict[str, str]:
    return os.environ | {
        "HOME": str(data),
        "RABBITMQ_NODENAME": "peers@localhost",
        "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(data / "pid"),
        "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq"),
        "RABBITMQ_CONF_ENV_FILE": str(data / "none"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
        "RABBITMQ_DIST_PORT": str(peers_port),
        "ERL_EPMD_PORT": str(names_port),
        "ERL_EPMD_ADDRESS": LOOPBACK,
    }


async def _child(
    name: str,
    program: list[str],
    log: StackLog,
    cleanup: contextlib.AsyncExitStack,
    environment: dict[str, str] | None = None,
) -> Child:
    child = await Child.spawn(name, program, log, environment=environment)
    cleanup.push_async_callback(child.stop, STOP_PHASES)
    return child


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
