"""celery: redis as the broker, return values in Postgres through SQLAlchemy and psycopg."""

import os
from typing import Any

import celery
import measuring
import psycopg

URL = os.environ["PEER_POSTGRES_URL"]

app = celery.Celery("peers")
app.conf.update(
    broker_url=os.environ["PEER_REDIS_URL"] + "/0",
    result_backend="db+" + URL.replace("postgresql://", "postgresql+psycopg://"),
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    # A task of a worker that died is delivered again, as with the other queues.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=32,
    database_engine_options={"pool_pre_ping": False},
    result_expires=None,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="no_op")
def no_op(payload: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    return measuring.RESULT


class CeleryPeer:
    """Everything here blocks the loop, on which nothing else runs. A group publishes one by one too: no bulk call."""

    packages = ("celery", "kombu", "sqlalchemy", "psycopg", "redis")
    expected = measuring.RESULT
    bulk = None

    async def open(self) -> None:
        app.backend._create_tables()
        self._connection = psycopg.connect(URL, autocommit=True)

    async def close(self) -> None:
        self._connection.close()

    async def submit(self, tasks: int) -> list[Any]:
        with app.producer_pool.acquire(block=True) as producer:
            return [no_op.apply_async((measuring.PAYLOAD,), producer=producer) for _ in range(tasks)]

    async def stored(self) -> int:
        row = self._connection.execute("select count(*) from celery_taskmeta where status = 'SUCCESS'").fetchone()
        assert row is not None
        return int(row[0])

    async def result(self, handle: Any) -> Any:
        return handle.get(timeout=measuring.RESULT_SECONDS, interval=measuring.RESULT_POLL_SECONDS)


if __name__ == "__main__":
    measuring.main(CeleryPeer())
