"""A stack for one drill: real services behind wires, one client that keeps a history, and the judgement at the end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from headrace_core.stack.dev import LocalStack, StackOptions
from tests.faults.checker import check
from tests.faults.collect import collect
from tests.faults.model import TERMINAL, Finding
from tests.faults.recording import FOLDER_VARIABLE, History
from tests.faults.schedule import Strike
from tests.faults.strikes import Striker
from tests.faults.wires import Ports, Wires, wired
from tests.faults.workload.clients import FaultsClient
from tests.faults.workload.intentions import Intention, wanted
from tests.fixtures.waiting import eventually

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SERVICES = ("producer", "status", "consumer-1", "consumer-2")
# A lease of 4 s: long enough that a wire that is cut for a second takes nothing over.
CONFIGURATION = """
[[queues]]
name = "faults"
ack_wait = "2s"
max_concurrency = 4
backoff = { initial = "100ms", maximum = "1s" }
"""
AGREEMENT_SECONDS = 10.0
UNTIL_SECONDS = 40.0
ROW = "select * from headrace_core.units where task_id = %s and unit = %s"
HOLES = """
select 1 from headrace_core.units u where u.task_id = %s and u.unit = -1
  and u.sequence > (select count(*) from headrace_core.events e where e.task_id = u.task_id)
"""


@dataclass
class Stage:
    """A running stack and what a drill may do to it."""

    stack: LocalStack
    client: FaultsClient
    striker: Striker
    faults: History
    database: AsyncConnection[dict[str, Any]]
    """Past the wires: no drill strikes Postgres itself."""
    _keys: int = 0

    async def submit(self, kind: str, payload: dict[str, Any], *, delay: float | None = None, **ends: Any) -> str:
        """Submit a task of the workload's kinds; `ends` is what must become of it. Returns its id."""
        self._keys += 1
        about = wanted(ends.pop("states", ["COMPLETED"])) | ends
        intention = Intention(f"drill-{self._keys}", f"faults.{kind}", {"n": 1, "work": 0.0} | payload, about)
        request = self.client.sdk.request(intention.kind, intention.payload, idempotency_key=intention.key, delay=delay)
        task_id = await self.client.submit(intention, request)
        assert task_id is not None
        return task_id

    async def row(self, task_id: str, unit: int = -1) -> dict[str, Any] | None:
        """A row as it is in the table."""
        return await (await self.database.execute(ROW, (task_id, unit))).fetchone()

    async def until(self, task_id: str, holds: Callable[[dict[str, Any]], bool], *, unit: int = -1) -> dict[str, Any]:
        """Wait until the row is as `holds` says."""

        async def look() -> dict[str, Any] | None:
            row = await self.row(task_id, unit)
            return row if row is not None and holds(row) else None

        row: dict[str, Any] | None = await eventually(look, within=UNTIL_SECONDS, what=f"unit {unit} of {task_id}")
        assert row is not None
        return row

    def note(self, row: dict[str, Any]) -> None:
        """Write down how far a row's publications and its charges are, at this moment."""
        charges = row["failures"] + row["crashes"] + row["interruptions"]
        about = {"id": str(row["task_id"]), "unit": row["unit"], "state": row["state"]}
        self.client.history.note("row_seen", **about, dispatch=row["dispatch"], charges=charges)

    @contextlib.contextmanager
    def frozen(self, service: str) -> Iterator[None]:
        """A service that stands still until the block ends."""
        pid = self.stack.services[service].pid
        assert pid is not None
        self.faults.note("fault_begun", fault="freeze", target=service)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
            self.faults.note("fault_ended", fault="freeze", target=service)

    async def running(self, task_id: str, unit: int = -1) -> dict[str, Any]:
        """Wait until a consumer holds the unit."""
        return await self.until(task_id, lambda row: row["holder"] is not None, unit=unit)

    async def ended(self, *task_ids: str, within: float = 20.0) -> None:
        """Wait until the tasks have ended; a task that has not `within` seconds is what the checker is to find."""

        async def all_ended() -> bool:
            rows = [await self.row(task_id) for task_id in task_ids]
            return all(row is not None and row["state"] in TERMINAL for row in rows)

        with contextlib.suppress(AssertionError):
            await eventually(all_ended, within=within, what="the end of the tasks")

    async def written(self, task_id: str) -> None:
        """Wait until every number that the task has given out has its event."""

        async def all_there() -> bool:
            return await (await self.database.execute(HOLES, (task_id,))).fetchone() is None

        await eventually(all_there, within=UNTIL_SECONDS, what=f"the events of {task_id}")

    def consumer_of(self, row: dict[str, Any]) -> str:
        """The name of the service that holds, or last held, a unit."""
        pid = int(row["worker"].rsplit("/", 1)[1])
        return next(name for name, service in self.stack.services.items() if service.pid == pid)

    async def strike(self, fault: str, target: str, seconds: float = 0.0) -> None:
        """Carry out one fault, and wait for its end."""
        await self.striker.carry_out(Strike(0.0, fault, target, seconds))


Drill = Callable[[Stage], Awaitable[None]]


async def rehearse(folder: Path, *drills: Drill, broken: str = "") -> list[Finding]:
    """Run the drills, one after the other, on one stack, and judge all of it. `broken` names a variant."""
    async with _staged(folder, broken) as stage:
        for drill in drills:
            await drill(stage)
        assert stage.striker.problems == []
        endpoints = stage.stack.endpoints
        run = await collect(folder, endpoints.database_url, endpoints.nats_url, agreement=AGREEMENT_SECONDS)
    return check(run)


@contextlib.asynccontextmanager
async def _staged(folder: Path, broken: str) -> AsyncIterator[Stage]:
    ports = Ports.free()
    async with contextlib.AsyncExitStack() as cleanup:
        wires = await cleanup.enter_async_context(wired(ports, SERVICES))
        faults = History(folder, "faults")
        cleanup.callback(faults.close)
        options = _options(folder, ports, wires, broken)
        stack = await cleanup.enter_async_context(LocalStack(options.data_dir, options=options))
        client = FaultsClient("drill", folder / "history", wires.address("producer"), wires.address("status"))
        cleanup.push_async_callback(client.close)
        striker = Striker(stack, wires, faults)
        cleanup.callback(striker.thaw)
        database = await psycopg.AsyncConnection.connect(
            stack.endpoints.database_url, row_factory=dict_row, autocommit=True, connect_timeout=5
        )
        cleanup.push_async_callback(database.close)
        yield Stage(stack, client, striker, faults, database)


def _options(folder: Path, ports: Ports, wires: Wires, broken: str) -> StackOptions:
    (folder / "headrace.toml").write_text(CONFIGURATION, encoding="utf-8")
    path = [HERE, HERE.parent / "handlers", ROOT]
    environment = {
        "PYTHONPATH": os.pathsep.join(str(part) for part in path),
        FOLDER_VARIABLE: str(folder / "ledger"),
        "FAULTS_BROKEN": broken,
        # A roll-out hands back what is still running then.
        "HEADRACE_GRACE_SECONDS": "3",
    }
    return StackOptions(
        folder / "stack",
        handlers=("faults_handlers",),
        producer_port=ports.producer,
        status_port=ports.status,
        database_port=ports.postgres,
        nats_port=ports.nats,
        environment=environment,
        service_environment={service: wires.environment(service) for service in SERVICES},
        working_folder=folder,
    )
