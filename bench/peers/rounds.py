"""One peer, once: its servers, its workers, its client through all measures."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.catalog import HEADRACE, SCRIPTS, Peer
from bench.peers.servers import Servers, running
from headrace_core.stack.child import Child, describe_exit
from headrace_core.stack.dev import DATABASE, LocalStack
from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog

RATES = ["end_to_end", "end_to_end_bulk"]
LATENCY_TIMES = 200
# Of a whole client, and of it the wait for results: the slowest peers do about 300 tasks a second.
CLIENT_SECONDS = 600.0
PATIENCE_SECONDS = 240.0
PREPARE_SECONDS = 60.0
STOP_PHASES = ((signal.SIGTERM, 10.0),)
CONSUMERS = 2


@dataclass(frozen=True)
class Scope:
    """How large a round is, and the folder for what it leaves behind."""

    tasks: int
    folder: Path


async def once(peer: Peer, scope: Scope) -> dict[str, Any]:
    """Measure `peer` on new servers; return the measures and the versions that its client reported.

    Raises StackError when something does not start, ends by itself or takes too long.
    """
    scope.folder.mkdir(parents=True)
    log = StackLog(scope.folder / "peer.log")
    try:
        if peer.name == HEADRACE:
            return await _headrace(peer, scope, log)
        return await _other(peer, scope, log)
    finally:
        log.close()


async def _headrace(peer: Peer, scope: Scope, log: StackLog) -> dict[str, Any]:
    async with LocalStack(scope.folder / "stack", consumers=CONSUMERS) as stack:
        servers = Servers()
        pids = {"postgres": stack.postgres.pid, "nats": stack.nats.pid}
        pids |= {name: service.pid for name, service in stack.services.items()}
        servers.processes = {name: pid for name, pid in pids.items() if pid is not None}
        servers.addresses = {
            "PEER_POSTGRES_URL": stack.postgres.url(DATABASE),
            "HEADRACE_PRODUCER_ADDRESS": stack.endpoints.producer,
            "HEADRACE_STATUS_ADDRESS": stack.endpoints.status,
        }
        return await _client(peer, scope, log, servers, [], [*RATES, "latency"], {})


async def _other(peer: Peer, scope: Scope, log: StackLog) -> dict[str, Any]:
    async with running(peer.servers, scope.folder, log) as servers:
        await _prepare(peer, scope, log, servers)
        if not peer.latency_settings:
            return await _phase(peer, scope, log, servers, [*RATES, "latency"], peer.settings)
        rates = await _phase(peer, scope, log, servers, RATES, peer.settings)
        latency = await _phase(peer, scope, log, servers, ["latency"], peer.latency_settings)
        return {**latency, "measures": rates["measures"] | latency["measures"]}


async def _phase(
    peer: Peer, scope: Scope, log: StackLog, servers: Servers, measures: list[str], settings: Mapping[str, str]
) -> dict[str, Any]:
    async with _workers(peer, log, servers, settings) as workers:
        return await _client(peer, scope, log, servers, workers, measures, settings)


@contextlib.asynccontextmanager
async def _workers(
    peer: Peer, log: StackLog, servers: Servers, settings: Mapping[str, str]
) -> AsyncIterator[list[Child]]:
    program = [str(peer.python), *peer.worker]
    environment = _environment(servers, settings)
    async with contextlib.AsyncExitStack() as cleanup:
        workers = []
        for number in range(1, peer.workers + 1):
            worker = await Child.spawn(
                f"worker-{number}", program, log, environment=environment, working_folder=SCRIPTS
            )
            cleanup.push_async_callback(worker.stop, STOP_PHASES)
            workers.append(worker)
        yield workers


async def _prepare(peer: Peer, scope: Scope, log: StackLog, servers: Servers) -> None:
    child = await _script(peer, log, servers, ["prepare"], {})
    await _finish(child, [], PREPARE_SECONDS, scope)


async def _client(
    peer: Peer,
    scope: Scope,
    log: StackLog,
    servers: Servers,
    workers: list[Child],
    measures: list[str],
    settings: Mapping[str, str],
) -> dict[str, Any]:
    answer = scope.folder / f"{measures[0]}.json"
    order = {
        "measures": measures,
        "tasks": min(scope.tasks, peer.most_tasks),
        "times": LATENCY_TIMES,
        "processes": servers.processes | {worker.name: worker.pid for worker in workers},
        "patience": PATIENCE_SECONDS,
        "answer": str(answer),
    }
    child = await _script(peer, log, servers, ["measure", json.dumps(order)], settings)
    await _finish(child, workers, CLIENT_SECONDS, scope)
    measured: dict[str, Any] = json.loads(answer.read_text())
    return measured


async def _script(
    peer: Peer, log: StackLog, servers: Servers, arguments: list[str], settings: Mapping[str, str]
) -> Child:
    program = [str(peer.python), str(peer.script), *arguments]
    environment = _environment(servers, settings)
    return await Child.spawn("client", program, log, environment=environment, working_folder=SCRIPTS)


async def _finish(client: Child, workers: list[Child], within: float, scope: Scope) -> None:
    """Wait for the client, which is told by nobody that a worker has died: then it is killed."""
    waits = [asyncio.create_task(child.wait(), name=child.name) for child in (client, *workers)]
    try:
        done, _ = await asyncio.wait(waits, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        if waits[0] not in done:
            what = f"{next(iter(done)).get_name()} ended" if done else f"the client is not done after {within:.0f} s"
            raise StackError(f"{what}; see {scope.folder / 'peer.log'}")
    finally:
        for wait in waits:
            wait.cancel()
        await client.kill()
    if client.returncode != 0:
        assert client.returncode is not None
        raise StackError(f"the client ended ({describe_exit(client.returncode)}){client.last_lines()}")


def _environment(servers: Servers, settings: Mapping[str, str]) -> dict[str, str]:
    """Return little: what the caller has set for Python or for a library must not reach the peers."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    ours = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    return kept | ours | servers.addresses | dict(settings)
