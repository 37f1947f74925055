"""arq: everything in redis, return values too."""

import os
from typing import Any

import arq
import measuring
import uvloop
from arq.connections import RedisSettings
from arq.constants import default_queue_name

JOBS = 20
SERVER = RedisSettings.from_dsn(os.environ["PEER_REDIS_URL"] + "/0")
SERVER.max_connections = 50


async def no_op(ctx: dict[Any, Any], payload: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    return measuring.RESULT


class WorkerSettings:
    functions = (no_op,)
    redis_settings = SERVER
    max_jobs = JOBS
    # Its default is half a second, which would be all that a round trip shows.
    poll_delay = 0.01
    log_results = False


class ArqPeer:
    packages = ("arq", "redis", "hiredis", "uvloop")
    expected = measuring.RESULT
    bulk = None

    async def open(self) -> None:
        self._redis = await arq.create_pool(SERVER)
        self._sent = 0

    async def close(self) -> None:
        await self._redis.aclose()

    async def submit(self, tasks: int) -> list[Any]:
        return await measuring.in_flight(JOBS, tasks, self._submit_one)

    async def stored(self) -> int:
        # A job leaves the queue in the transaction that writes its result; counting results would read every key.
        return self._sent - int(await self._redis.zcard(default_queue_name))

    async def result(self, handle: Any) -> Any:
        return await handle.result(timeout=measuring.RESULT_SECONDS, poll_delay=measuring.RESULT_POLL_SECONDS)

    async def _submit_one(self) -> Any:
        handle = await self._redis.enqueue_job("no_op", measuring.PAYLOAD)
        self._sent += 1
        return handle


if __name__ == "__main__":
    measuring.main(ArqPeer(), uvloop.new_event_loop)
