"""What a run writes down, and how it is read again: files by files, rows and the stream from real servers."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.checker import check
from tests.faults.collect import collect
from tests.faults.model import MERGE, TASK
from tests.faults.recording import FOLDER_VARIABLE, History, Ledger, worker
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.waiting import eventually


@dataclass
class Ctx:
    """As much of a handler's context as the ledger needs."""

    task_id: str = "t"
    epoch: int = 3
    attempt: int = 2
    shard_index: int | None = None


async def test_what_clients_and_handlers_wrote_is_read_in_the_order_of_time(tmp_path: Path, database_url: str) -> None:
    first, second = History(tmp_path / "history", "a"), History(tmp_path / "history", "b")
    first.note("submit_sent", key="k")
    second.note("got", id="t", state="TASK_STATE_COMPLETED")
    first.note("submit_ok", key="k", id="t", created=True)
    first.close()
    second.close()
    ledger = Ledger(tmp_path / "ledger")
    ledger.note("started", Ctx(shard_index=4))
    ledger.note("effect", Ctx(), phase="merge", value=1)
    ledger.note("started", Ctx(), phase="plan")
    run = await collect(tmp_path, database_url, None)
    assert [(note.client, note.what) for note in run.history] == [
        ("a", "submit_sent"),
        ("b", "got"),
        ("a", "submit_ok"),
    ]
    assert run.history[1].get("state") == "COMPLETED"
    assert [(note.unit, note.epoch, note.attempt, note.worker) for note in run.ledger] == [
        (4, 3, 2, worker()),
        (MERGE, 3, 2, worker()),
        (TASK, 3, 2, worker()),
    ]
    assert run.stream is None


async def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, database_url: str) -> None:
    history = History(tmp_path / "history", "a")
    history.note("submit_sent", key="k")
    history.close()
    with (tmp_path / "history" / "a.jsonl").open("a") as file:
        file.write('{"at":1,"client":"a","wh')
    run = await collect(tmp_path, database_url, None)
    assert [note.what for note in run.history] == ["submit_sent"]


def test_threads_do_not_mix_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    ledger = Ledger.from_environment()
    assert Ledger.from_environment() is ledger

    def write() -> None:
        for number in range(200):
            ledger.note("checkpoint", Ctx(), data="x" * 500, number=number)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = tmp_path.glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 800


async def test_rows_events_attempts_and_the_dead_letter_stream_are_read_from_the_servers(
    tmp_path: Path, database_url: str, nats_url: str
) -> None:
    rig = ConsumerRig(database_url, nats_url, tmp_path)
    await rig.open()
    try:
        await rig.consumer()
        done = await rig.submit("double", {"n": 2})
        failed = await rig.submit("non-retryable", {})
        await rig.ended(done)
        await rig.ended(failed)

        async def published() -> bool:
            return len((await collect(tmp_path, database_url, nats_url, agreement=0.0)).stream or ()) == 1

        await eventually(published, what="the entry in the dead letter stream")
        run = await collect(tmp_path, database_url, nats_url)
    finally:
        await rig.close()
    states = {unit.task: (unit.state, unit.epoch > 0, unit.unit) for unit in run.units}
    assert states == {str(done.id): ("COMPLETED", True, TASK), str(failed.id): ("FAILED", True, TASK)}
    (letter,) = run.dead_letters
    assert [(entry.id, entry.reason) for entry in run.stream or ()] == [(letter.id, letter.reason)]
    assert letter.task == str(failed.id)
    assert [finding for finding in check(run) if finding.violations] == []
