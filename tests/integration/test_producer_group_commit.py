"""The group commit: a bad row fails alone, the waiting room has a size, and every caller gets its own answer."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from headrace_core.db.pool import Database
from headrace_core.errors import InvalidFields, ServerLimit
from headrace_core.tasks.model import Submitted
from producer import submit
from producer.submit import GroupCommit
from tests.factories import a_task


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def test_a_row_that_postgres_refuses_fails_no_neighbour(db: Database) -> None:
    accepted: list[Submitted] = []
    commits = GroupCommit(db, accepted.extend)
    # What no check of ours would let through: it stands for the check that we forgot.
    tasks = [a_task(payload=b"no json" if index == 5 else b"{}") for index in range(12)]
    answers = await asyncio.gather(*(commits.submit([task], within=10) for task in tasks))
    for index, (answer,) in enumerate(answers):
        assert isinstance(answer, InvalidFields if index == 5 else Submitted)
    assert {item.task.id for item in accepted} == {task.id for index, task in enumerate(tasks) if index != 5}
    await commits.close()


async def test_the_waiting_room_has_a_size(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_WAITING", 3)
    commits = GroupCommit(db, lambda _: None)
    calls = [asyncio.ensure_future(commits.submit([a_task()], within=10)) for _ in range(3)]
    refused = asyncio.ensure_future(commits.submit([a_task()], within=10))
    with pytest.raises(ServerLimit) as error:
        await refused
    assert error.value.retry_after is not None
    answers = await asyncio.gather(*calls)
    assert all(isinstance(answer, Submitted) for (answer,) in answers)
    await commits.close()


async def test_a_batch_larger_than_a_commit_is_answered_in_order(db: Database) -> None:
    commits = GroupCommit(db, lambda _: None)
    tasks = [a_task() for _ in range(2 * submit.MAX_BATCH + 1)]
    answers = await commits.submit(tasks, within=20)
    assert [answer.task.id for answer in answers if isinstance(answer, Submitted)] == [task.id for task in tasks]
    await commits.close()


async def test_a_call_that_comes_as_a_commit_ends_starts_another(db: Database) -> None:
    commits = GroupCommit(db, lambda _: None)
    for _ in range(20):
        await commits.submit([a_task()], within=5)
    await commits.close()


async def test_a_lone_task_waits_for_nobody_and_a_crowd_shares_commits(db: Database) -> None:
    commits = GroupCommit(db, lambda _: None)
    await asyncio.gather(*(commits.submit([a_task()], within=20) for _ in range(300)))
    (row,) = await db.fetch("select count(distinct xmin::text) as n from headrace_core.units")
    assert row["n"] <= 2
    await commits.submit([a_task()], within=20)
    await commits.close()
