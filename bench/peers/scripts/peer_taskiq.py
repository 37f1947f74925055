"""taskiq: pulls from JetStream (taskiq-nats), keeps return values in Postgres (taskiq-postgres, asyncpg)."""

import os
from typing import Any

import asyncpg
import measuring
import uvloop
from nats.js.api import ConsumerConfig, StorageType, StreamConfig
from taskiq.serializers import JSONSerializer
from taskiq_nats import PullBasedJetStreamBroker
from taskiq_pg.asyncpg import AsyncpgResultBackend

URL = os.environ["PEER_POSTGRES_URL"]
CONNECTIONS = 10
CALLERS = 128

results = AsyncpgResultBackend(dsn=URL, serializer=JSONSerializer(), min_size=CONNECTIONS, max_size=CONNECTIONS)
broker = PullBasedJetStreamBroker(
    servers=[os.environ["PEER_NATS_URL"]],
    stream_config=StreamConfig(storage=StorageType.FILE),
    consumer_config=ConsumerConfig(durable_name="taskiq_durable", max_ack_pending=10_000),
    pull_consume_batch=int(os.environ.get("PEER_BATCH", "1")),
    # Without a limit a batch that is not full is held back for ever.
    pull_consume_timeout=float(os.environ["PEER_PULL_SECONDS"]) if "PEER_PULL_SECONDS" in os.environ else None,
).with_result_backend(results)


@broker.task(task_name="no_op")
async def no_op(payload: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    return measuring.RESULT


class TaskiqPeer:
    packages = ("taskiq", "taskiq-nats", "taskiq-postgres", "nats-py", "asyncpg", "uvloop")
    expected = measuring.RESULT
    bulk = None

    async def open(self) -> None:
        await broker.startup()
        self._connection = await asyncpg.connect(URL)

    async def close(self) -> None:
        await self._connection.close()
        await broker.shutdown()

    async def submit(self, tasks: int) -> list[Any]:
        return await measuring.in_flight(CALLERS, tasks, lambda: no_op.kiq(measuring.PAYLOAD))

    async def stored(self) -> int:
        statement = "select count(*) from taskiq_results where result is not null"
        return int(await self._connection.fetchval(statement))

    async def result(self, handle: Any) -> Any:
        seconds = measuring.RESULT_SECONDS
        outcome = await handle.wait_result(check_interval=measuring.RESULT_POLL_SECONDS, timeout=seconds)
        outcome.raise_for_error()
        return outcome.return_value


if __name__ == "__main__":
    measuring.main(TaskiqPeer(), uvloop.new_event_loop)
