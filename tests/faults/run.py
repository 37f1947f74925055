"""One whole run: start a stack, put it under load, strike it, let it heal, read everything, judge."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headrace_core.bus.errors import BusError
from headrace_core.bus.topology import StreamNames, apply_topology
from headrace_core.settings.queues import Topology, load_topology
from headrace_core.stack.dev import LocalStack, StackOptions
from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats_cluster import NODES, NatsCluster
from tests.faults.checker import check, totals
from tests.faults.collect import collect
from tests.faults.model import Finding, Run
from tests.faults.recording import FOLDER_VARIABLE, History
from tests.faults.recovery import recovered
from tests.faults.scenarios import Scenario
from tests.faults.schedule import Strike
from tests.faults.scraping import Counters
from tests.faults.settling import Watchman
from tests.faults.strikes import Striker
from tests.faults.wires import Ports, Wires, wired
from tests.faults.workload.clients import FaultsClient
from tests.faults.workload.intentions import LABELS, intentions
from tests.faults.workload.load import Load
from tests.faults.workload.lookout import Lookout

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CLIENTS = 3
MAX_OPEN_TASKS = 400
"""With so many tasks under way nothing more is submitted: a slow machine gets less to do."""
START_SECONDS = 120.0
FOLLOW_SECONDS = 75.0
SETTLE_SECONDS = 90.0
COLLECT_SECONDS = 90.0
LOOKOUT_SECONDS = 15.0
RECOVERY_SECONDS = 30.0
STOP_SECONDS = 60.0
ELECTION_SECONDS = 60.0
MEND_SECONDS = 200.0
AFTERWARDS = (
    MEND_SECONDS,
    FOLLOW_SECONDS,
    SETTLE_SECONDS,
    RECOVERY_SECONDS,
    LOOKOUT_SECONDS,
    COLLECT_SECONDS,
    STOP_SECONDS,
)
"""From the end of the load to the end of the run, at the very most."""
PROGRESS_SECONDS = 10.0
CONFIGURATION = """
[[queues]]
name = "faults"
ack_wait = "1500ms"
max_concurrency = %d
backoff = { initial = "200ms", maximum = "1s" }
"""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run. `problems` are defects of the run itself, such as a part that could not be started again."""

    scenario: Scenario
    seed: int
    seconds: float
    submitted: int
    strikes: dict[str, int]
    counts: dict[str, int]
    findings: tuple[Finding, ...]
    problems: tuple[str, ...]

    @property
    def is_green(self) -> bool:
        """Nothing was violated and the run itself went as planned."""
        return not self.problems and all(finding.is_clean for finding in self.findings)


@dataclass(frozen=True)
class Parts:
    """What one run consists of while it runs."""

    stack: LocalStack
    nats_url: str
    striker: Striker
    clients: Sequence[FaultsClient]
    load: Load
    lookout: Lookout
    watchman: Watchman
    counters: Counters


async def run(scenario: Scenario, seed: int, folder: Path, say: Say, *, broken: str = "") -> Outcome:
    """Run `scenario` in `folder` and judge it. `broken` names a deliberately broken variant of the services.

    Raises StackError when the stack does not start, TimeoutError when the run as a whole takes too long.
    """
    begun = time.monotonic()
    limit = START_SECONDS + scenario.seconds + sum(AFTERWARDS)
    async with asyncio.timeout(limit):
        async with _running(scenario, seed, folder, broken) as parts:
            say(f"the stack serves after {time.monotonic() - begun:.0f} s; log: {parts.stack.log_file}")
            async with _background(
                parts.watchman.run(), parts.counters.run(), parts.lookout.run(), _progress(parts, say)
            ):
                await _strike_under_load(scenario, parts, say)
                problems = await _settle(parts, say)
            say("reading and judging")
            async with asyncio.timeout(COLLECT_SECONDS):
                evidence = await collect(folder, parts.stack.endpoints.database_url, parts.nats_url)
    problems += parts.striker.problems + parts.load.broken
    return Outcome(
        scenario=scenario,
        seed=seed,
        seconds=time.monotonic() - begun,
        submitted=parts.load.submitted,
        strikes=parts.striker.counts,
        counts=_counts(evidence, parts),
        findings=tuple(check(evidence)),
        problems=tuple(problems),
    )


@contextlib.asynccontextmanager
async def _running(scenario: Scenario, seed: int, folder: Path, broken: str) -> AsyncIterator[Parts]:
    services = ("producer", "status", *(f"consumer-{number}" for number in range(1, scenario.consumers + 1)))
    ports = Ports.free()
    async with contextlib.AsyncExitStack() as cleanup:
        wires = await cleanup.enter_async_context(wired(ports, services))
        faults = History(folder, "faults")
        cleanup.callback(faults.close)
        options = _options(scenario, folder, ports, wires, services, broken)
        cluster = None
        if scenario.nodes > 1:
            cluster = await cleanup.enter_async_context(_cluster(folder))
            options = _on_cluster(options, cluster)
        stack = await cleanup.enter_async_context(LocalStack(options.data_dir, options=options))
        watchman = Watchman(stack.endpoints.database_url)
        clients = [_client(f"client-{number}", folder, wires) for number in range(1, CLIENTS + 1)]
        for client in clients:
            cleanup.push_async_callback(client.close)
        load = Load(
            clients,
            intentions(seed, scenario.mix),
            scenario.rate,
            lambda: watchman.standing.open_tasks < MAX_OPEN_TASKS,
        )
        lookout = Lookout(clients[0], LABELS)
        striker = Striker(stack, wires, faults, cluster)
        # Whatever happens, nothing stays frozen: a stopped process could not be stopped in an orderly way.
        cleanup.callback(striker.thaw)
        nats_url = cluster.url if cluster else stack.endpoints.nats_url
        yield Parts(stack, nats_url, striker, clients, load, lookout, watchman, Counters(stack, faults))


def _options(
    scenario: Scenario, folder: Path, ports: Ports, wires: Wires, services: Sequence[str], broken: str
) -> StackOptions:
    (folder / "headrace.toml").write_text(CONFIGURATION % scenario.concurrency, encoding="utf-8")
    path = [str(HERE / "handlers"), os.environ.get("PYTHONPATH", ""), str(ROOT)]
    environment = {FOLDER_VARIABLE: str(folder / "ledger"), "HEADRACE_LOG_LEVEL": "info"}
    if broken:
        path.insert(0, str(HERE / "broken"))
        environment["FAULTS_BROKEN"] = broken
    environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    return StackOptions(
        folder / "stack",
        consumers=scenario.consumers,
        handlers=("faults_handlers",),
        producer_port=ports.producer,
        status_port=ports.status,
        database_port=ports.postgres,
        nats_port=ports.nats,
        environment=environment,
        service_environment={service: wires.environment(service) for service in services},
        working_folder=folder,
    )


@contextlib.asynccontextmanager
async def _cluster(folder: Path) -> AsyncIterator[NatsCluster]:
    """Three NATS servers with the streams on all of them. The stack's own server stands idle beside them."""
    log = StackLog(folder / "nats-cluster.log")
    cluster = NatsCluster(folder / "nats-cluster", log)
    topology = load_topology(folder / "headrace.toml", {}, folder)
    try:
        await cluster.start()
        async with asyncio.timeout(ELECTION_SECONDS):
            await _replicated(cluster.url, topology)
        yield cluster
    finally:
        await cluster.stop()
        log.close()


async def _replicated(nats_url: str, topology: Topology) -> None:
    """Make the streams with a replica on each node, as soon as the nodes have agreed on a leader."""
    while True:
        try:
            await apply_topology(nats_url, StreamNames(), topology.queues.values(), replicas=NODES)
        except BusError:
            await asyncio.sleep(0.5)
        else:
            return


def _on_cluster(options: StackOptions, cluster: NatsCluster) -> StackOptions:
    """The services talk to the cluster itself: its nodes tell clients of each other, past any wire."""
    environments = {
        service: {**environment, "HEADRACE_NATS_URL": cluster.url}
        for service, environment in options.service_environment.items()
    }
    return replace(options, service_environment=environments)


def _client(name: str, folder: Path, wires: Wires) -> FaultsClient:
    return FaultsClient(name, folder / "history", wires.address("producer"), wires.address("status"))


async def _strike_under_load(scenario: Scenario, parts: Parts, say: Say) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.TaskGroup() as group:
        group.create_task(parts.load.run(), name="load")
        for strike in scenario.strikes:
            group.create_task(_strike(strike, begun, parts.striker, say), name=f"strike-{strike.fault}")
        await asyncio.sleep(scenario.seconds)
        parts.load.stop()


async def _strike(strike: Strike, begun: float, striker: Striker, say: Say) -> None:
    await asyncio.sleep(max(begun + strike.at - asyncio.get_running_loop().time(), 0.0))
    say(
        f"{strike.at:6.1f} s  {strike.fault} {strike.target}"
        + (f" for {strike.seconds:.1f} s" if strike.seconds else "")
    )
    await striker.carry_out(strike)


async def _settle(parts: Parts, say: Say) -> list[str]:
    """Heal, and wait until nothing is open any more; return what went wrong."""
    problems: list[str] = []
    say("the faults are over: waiting until every task has ended")
    try:
        await parts.striker.mend()
    except StackError as error:
        problems.append(f"a part does not start again: {error.message}")
    given_up = await parts.load.finish(FOLLOW_SECONDS)
    if given_up:
        problems.append(f"{given_up} clients were still waiting {FOLLOW_SECONDS:.0f} s after the faults were over")
    await parts.load.resolve_unknown()
    if not await parts.watchman.until_ended(SETTLE_SECONDS):
        problems += [f"not ended: {line}" for line in await parts.watchman.open_units()]
    problems += await recovered(parts.clients[0], RECOVERY_SECONDS)
    await parts.lookout.finish(parts.watchman.standing.tasks, LOOKOUT_SECONDS)
    await parts.counters.read()
    parts.counters.note()
    return problems


async def _progress(parts: Parts, say: Say) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        standing = parts.watchman.standing
        say(
            f"        {parts.load.submitted} submitted, {standing.tasks} accepted, {standing.open_tasks} under way, "
            f"{sum(parts.striker.counts.values())} faults"
        )


@contextlib.asynccontextmanager
async def _background(*works: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run endless works beside the block; one that breaks ends the run."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def _counts(evidence: Run, parts: Parts) -> dict[str, int]:
    counters, counted = parts.counters, totals(evidence)
    names = {
        "takeovers": counters.sum_of("takeovers_total"),
        "fenced writes": counters.sum_of("fenced_total"),
        "deliveries that were no claim": counters.sum_of("claim_refused_total"),
        "claims": counters.sum_of("claims_total"),
        "claims past the broker": counters.sum_of("claims_total", "postgres"),
        "repeated publications": counters.sum_of("republished_total"),
    }
    return names | {name: value for name, value in counted.items() if not name.startswith("headrace_")}
