"""The broker loses its data under running tasks: Postgres has them, and all of them end as they should (G1)."""

from collections import Counter
from pathlib import Path

from headrace import Client
from headrace_core.stack.dev import LocalStack
from tests.fixtures.servers import handlers_path
from tests.scenarios.wiped_broker import outcomes, submit_all, wipe

TASKS = 300


async def test_nats_is_killed_and_its_data_deleted_and_every_task_ends_as_it_should(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": handlers_path()}
    async with (
        LocalStack(tmp_path / "stack", handlers=["workshop"], environment=environment) as stack,
        Client(stack.endpoints.producer, stack.endpoints.status) as client,
    ):
        expected = await submit_all(client, TASKS)
        await wipe(stack, away=0.5)
        assert await outcomes(client, expected) == Counter({"as it should": TASKS})
