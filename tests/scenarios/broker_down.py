"""nats-server is gone for a minute under steady submits: none fails, tasks go on completing, submits stay quick.

`python -m tests.scenarios.broker_down [--seconds 60] [--rate 200]`, about two minutes. `--rate 0` submits as fast as
32 callers can.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from headrace import Client
from headrace_core.db.pool import Database
from headrace_core.stack.dev import LocalStack
from tests.fixtures.waiting import eventually

CALLERS = 32
MAX_OPEN = 500
SETTLE_SECONDS = 5.0
NORMAL_SECONDS = 20.0
SHARE = 1 / 3
P99_SECONDS = 0.25
PAYLOAD = {"text": "x" * 200}

COMPLETED = """
select count(*) filter (where state = 'COMPLETED' and ended_at >= %(since)s and ended_at < %(until)s) as n
from headrace_core.units where kind = 'echo'
"""
ENDS = """
select count(*) as n, count(*) filter (where state = 'COMPLETED') as completed, coalesce(max(attempt), 0) as attempts
from headrace_core.units where kind = 'echo'
"""


@dataclass
class Submits:
    """What became of every submit: when it began and how long it took, by time.time(); and what failed."""

    taken: list[tuple[float, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def p99(self, since: float, until: float) -> float:
        """Seconds; 0 without any."""
        found = sorted(took for began, took in self.taken if since <= began < until)
        return found[int(len(found) * 0.99)] if found else 0.0

    async def one(self, client: Client) -> None:
        """Submit once."""
        began, clock = time.time(), time.monotonic()
        try:
            await client.submit("echo", PAYLOAD)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a submit that failed
            self.failed.append(f"{type(error).__name__}: {error}")
        self.taken.append((began, time.monotonic() - clock))


async def submit_steadily(client: Client, rate: float, submits: Submits, stop: asyncio.Event) -> None:
    """At `rate` a second whether or not the answers keep up, at most MAX_OPEN at once. 0: CALLERS, each in its turn."""
    if not rate:
        await asyncio.gather(*(_submit_in_turn(client, submits, stop) for _ in range(CALLERS)))
        return
    calls: set[asyncio.Task[None]] = set()
    next_at = time.monotonic()
    while not stop.is_set():
        next_at += 1 / rate
        if len(calls) < MAX_OPEN:
            call = asyncio.create_task(submits.one(client))
            calls.add(call)
            call.add_done_callback(calls.discard)
        else:
            submits.failed.append(f"{MAX_OPEN} submits were open")
        await asyncio.sleep(max(next_at - time.monotonic(), 0))
    if calls:
        await asyncio.wait(calls)


async def _submit_in_turn(client: Client, submits: Submits, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await submits.one(client)


async def until_all_in(stack: LocalStack, mode: str, within: float) -> float:
    """Wait until every consumer's metrics show `mode`; when that was, by time.time()."""
    consumers = [service for name, service in stack.services.items() if name.startswith("consumer")]

    def shows(address: str | None) -> bool:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
            return f'headrace_mode{{mode="{mode}"}} 1.0' in page.read().decode()

    async def all_show() -> bool:
        return all([await asyncio.to_thread(shows, service.addresses.ops) for service in consumers])

    await eventually(all_show, within=within, what=f"mode {mode} everywhere")
    return time.time()


async def rate_between(db: Database, since: float, until: float) -> float:
    """Completions a second."""
    moments = {"since": datetime.fromtimestamp(since, UTC), "until": datetime.fromtimestamp(until, UTC)}
    (row,) = await db.fetch(COMPLETED, moments, timeout=30)
    return float(row["n"]) / (until - since)


async def all_ended(db: Database, expected: int, within: float) -> tuple[int, int]:
    """How many have completed, and the most attempts of any, once nothing is left or the time is up."""
    deadline = time.monotonic() + within
    while True:
        (row,) = await db.fetch(ENDS, timeout=30)
        if row["completed"] >= expected or time.monotonic() > deadline:
            return int(row["completed"]), int(row["attempts"])
        await asyncio.sleep(0.5)


@dataclass(frozen=True)
class Course:
    """When what happened, by time.time()."""

    began: float
    killed: float
    switched: float
    back: float
    returned: float
    ended: float

    def phases(self) -> dict[str, tuple[float, float]]:
        """From when to when each part of it lasted."""
        return {
            "before": (self.began, self.killed),
            "gone, until the switch": (self.killed, self.switched),
            "gone, switched": (self.switched, self.back),
            "back, until the return": (self.back, self.returned),
            "returned": (self.returned, self.ended),
        }


async def take_away(stack: LocalStack, seconds: float) -> Course:
    """Normal for a while, without nats-server for `seconds`, normal again."""
    await asyncio.sleep(SETTLE_SECONDS)
    began = time.time()
    await asyncio.sleep(NORMAL_SECONDS)
    killed = time.time()
    await stack.kill_part("nats")
    switched = await until_all_in(stack, "fallback", 30)
    await asyncio.sleep(max(seconds - (time.time() - killed), 0))
    back = time.time()
    await stack.start_part("nats")
    returned = await until_all_in(stack, "broker", 60)
    await asyncio.sleep(NORMAL_SECONDS / 2)
    return Course(began, killed, switched, back, returned, time.time())


async def judge(db: Database, course: Course, submits: Submits) -> bool:
    """Print the figures; True if they are as promised."""
    accepted = len(submits.taken) - len(submits.failed)
    completed, attempts = await all_ended(db, accepted, 60)
    for name, phase in course.phases().items():
        print(
            f"{name:24} {phase[1] - phase[0]:6.1f} s   {await rate_between(db, *phase):7.0f} tasks/s completed   "
            f"p99 of submit {submits.p99(*phase) * 1000:6.1f} ms"
        )
    normal = await rate_between(db, course.began, course.killed)
    gone = await rate_between(db, course.killed, course.back)
    print(f"while nats-server was gone: {gone:.0f} tasks/s, {gone / normal:.0%} of the normal rate")
    print(f"time to switch {course.switched - course.killed:.1f} s, to return {course.returned - course.back:.1f} s")
    print(f"submits: {len(submits.taken)}, failed: {len(submits.failed)} {submits.failed[:3]}")
    print(f"accepted: {accepted}, completed: {completed}, most attempts of a task: {attempts}")
    quick = submits.p99(course.switched, course.back) < P99_SECONDS
    return not submits.failed and completed == accepted and gone >= SHARE * normal and quick


async def run(seconds: float, rate: float, folder: Path) -> bool:
    async with (
        LocalStack(folder) as stack,
        Client(stack.endpoints.producer, stack.endpoints.status) as client,
    ):
        db = Database(stack.endpoints.database_url)
        await db.open()
        submits, stop = Submits(), asyncio.Event()
        submitting = asyncio.create_task(submit_steadily(client, rate, submits, stop), name="submits")
        course = await take_away(stack, seconds)
        stop.set()
        await submitting
        good = await judge(db, course, submits)
        await db.close()
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long nats-server is gone")
    parser.add_argument("--rate", type=float, default=200.0, help="submits a second; 0: as many as possible")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = asyncio.run(run(arguments.seconds, arguments.rate, Path(folder) / "stack"))
    print("as promised" if good else "NOT AS PROMISED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
