"""dramatiq: RabbitMQ with confirmed publishing, return values in redis. Its client blocks, so threads submit."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
import measuring
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

THREADS = 16
results = RedisBackend(url=os.environ["PEER_REDIS_URL"] + "/0")
broker = RabbitmqBroker(url=os.environ["PEER_AMQP_URL"], confirm_delivery=True)
broker.add_middleware(Results(backend=results))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True, queue_name="peers")
def no_op(payload: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    return measuring.RESULT


class DramatiqPeer:
    """Everything here blocks the loop, on which nothing else runs."""

    packages = ("dramatiq", "pika", "redis")
    expected = measuring.RESULT
    bulk = None

    async def open(self) -> None:
        broker.declare_queue("peers", ensure=True)
        self._threads = ThreadPoolExecutor(THREADS)

    async def close(self) -> None:
        self._threads.shutdown()
        broker.close()

    async def submit(self, tasks: int) -> list[Any]:
        if tasks == 1:
            return [no_op.send(measuring.PAYLOAD)]
        return list(self._threads.map(lambda _: no_op.send(measuring.PAYLOAD), range(tasks)))

    async def stored(self) -> int:
        return int(results.client.dbsize())  # a key for each result; nothing else is in this database

    async def result(self, handle: Any) -> Any:
        milliseconds = int(measuring.RESULT_SECONDS * 1000)
        return handle.get_result(backend=results, block=True, timeout=milliseconds)


if __name__ == "__main__":
    measuring.main(DramatiqPeer())
