"""Work that ends from outside: drained, cancelled, fenced; and leases that outlive a blocked loop."""

import asyncio
import os
import time

from headrace_core.bus.control import publish_cancel
from headrace_core.db.pool import Database
from headrace_core.tasks.cancel import cancel
from headrace_core.tasks.kinds import live_consumers
from headrace_core.tasks.publication import of_submitted
from headrace_core.tasks.takeover import read_leases, take_over
from headrace_core.telemetry import metrics
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.waiting import eventually


async def test_a_drain_lets_handlers_finish_that_listen(rig: ConsumerRig) -> None:
    consumer = await rig.consumer()
    task = await rig.submit("finishes-when-asked")
    await rig.has_begun(task)
    await rig.stop(consumer)
    assert await rig.result(task) == "finished in time"
    assert await rig.unacknowledged() == 0


async def test_a_drain_hands_back_with_the_checkpoint_and_another_goes_on_at_once(rig: ConsumerRig) -> None:
    first = await rig.consumer()
    task = await rig.submit("resumes")
    await rig.has_begun(task)
    await rig.consumer()
    await rig.stop(first)
    handed_back = time.monotonic()
    assert await rig.result(task) == {"restored": {"page": 7}, "attempt": 2}
    assert time.monotonic() - handed_back < 2.0
    row = await rig.row(task.id)
    assert (row["failures"], row["crashes"], row["interruptions"]) == (0, 0, 1)


async def test_a_drain_keeps_to_its_grace_period(rig: ConsumerRig) -> None:
    consumer = await rig.consumer(grace_seconds="1")
    task = await rig.submit("waits")
    await rig.has_begun(task)
    began = time.monotonic()
    await consumer.drain()
    assert time.monotonic() - began < 2.0
    row = await rig.row(task.id)
    assert (row["state"], row["reason"], row["holder"]) == ("PENDING", "INTERRUPTED", None)
    assert (row["dispatch"], await rig.unacknowledged()) == (2, 1)


async def test_what_was_delivered_and_not_claimed_goes_back(rig: ConsumerRig) -> None:
    toml = 'queues = [{name = "default", ack_wait = "30s", max_concurrency = 1}]\n'
    first = await rig.consumer(toml=toml, grace_seconds="1")
    running = await rig.submit("waits", priority=2)
    await rig.has_begun(running)
    waiting = await rig.submit("double", {"n": 1})
    second = await rig.consumer(toml=toml)
    await rig.stop(first)
    await rig.stop(second)
    await rig.consumer(toml='queues = [{name = "default", ack_wait = "30s"}]\n')
    assert await rig.result(waiting, within=5) == {"doubled": 2, "attempt": 1}


async def test_a_drained_consumer_says_so_and_leaves(rig: ConsumerRig) -> None:
    consumer = await rig.consumer()
    (row,) = await live_consumers(rig.db)
    assert (row.mode, row.draining, "double" in row.kinds) == ("broker", False, True)
    await consumer.drain()
    (row,) = await live_consumers(rig.db)
    assert row.draining
    await rig.stop(consumer)
    assert await live_consumers(rig.db) == []


async def test_a_broadcast_ends_a_cancelled_handler_at_once(rig: ConsumerRig) -> None:
    # The renewals are too far apart to be what notices.
    await rig.consumer(toml='queues = [{name = "default", ack_wait = "60s"}]\n')
    task = await rig.submit("waits")
    await rig.has_begun(task)
    await cancel(rig.db, task.id)
    assert rig.bus is not None
    await publish_cancel(rig.bus, rig.names, [task.id])
    await eventually(lambda: _running(rig) == 0, within=3, what="the handler's end")
    assert (await rig.row(task.id))["state"] == "CANCELLED"


async def test_a_lost_lease_ends_the_handler_and_writes_nothing(rig: ConsumerRig) -> None:
    consumer = await rig.consumer()
    task = await rig.submit("waits")
    await rig.has_begun(task)
    works = consumer._works
    assert works is not None
    for _ in range(50):  # a renewal between reading and taking over keeps the lease where it is
        (settled,) = (await take_over(rig.db, await read_leases(rig.db))).answers
        if settled.applied:
            break
    lost = metrics.renewals_lost_total._value.get()
    await eventually(lambda: metrics.renewals_lost_total._value.get() > lost, what="the lost renewal")
    await eventually(lambda: works.units.running == 0, what="the handler's end")
    row = await rig.row(task.id)
    assert (row["state"], row["interruptions"], row["failures"]) == ("PENDING", 1, 0)


async def test_a_suspect_runs_alone_in_a_process(rig: ConsumerRig) -> None:
    task = await rig.submit("where", publish=False)
    await rig.db.fetch(
        "update headrace_core.units set suspect = true where task_id = %(id)s returning 1", {"id": task.id}
    )
    await rig.consumer()
    await rig.publish([of_submitted(task)])
    assert await rig.result(task) != os.getpid()


async def test_a_handler_that_blocks_the_loop_keeps_its_lease(rig: ConsumerRig) -> None:
    await rig.consumer(toml='queues = [{name = "default", ack_wait = "0.5s"}]\n')
    task = await rig.submit("blocks-the-loop", {"seconds": 2.0}, publish=False)

    # The loop is blocked: whoever watches from outside must see renewals all the same.
    def watch() -> set[int]:
        async def read() -> set[int]:
            db = Database(rig._url, max_size=1)
            await db.open()
            try:
                seen: set[int] = set()

                async def enough() -> bool:
                    seen.update(item.renewal for item in await read_leases(db))
                    return len(seen) >= 4

                await eventually(enough, within=8, what="four renewals")
                return seen
            finally:
                await db.close()

        return asyncio.run(read())

    watching = asyncio.create_task(asyncio.to_thread(watch))
    await rig.publish([of_submitted(task)])
    assert len(await watching) >= 4
    assert await rig.result(task) == "done"
    assert (await rig.row(task.id))["epoch"] == 1


def _running(rig: ConsumerRig) -> int:
    return sum(consumer._works.units.running for consumer in rig.consumers if consumer._works)
