"""The users of deploy/nats on a server that knows nobody else: what services need is enough, and no more is let."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace import Client
from headrace_core.bus.access import Access
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import Denied
from headrace_core.bus.permissions import SERVICES, document
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from tests.deploy.tools import ROOT
from tests.fixtures.fleet import Fleet
from tests.fixtures.nats_users import PASSWORD, VIOLATION, access_of, passwords
from tests.fixtures.waiting import eventually
from tests.privileges.programs import headrace

FILE = ROOT / "deploy" / "nats" / "permissions.conf"
NAMES = StreamNames()
TOML = """
queues = [
    {name = "default", ack_wait = "1s", backoff = {initial = "100ms", maximum = "1s"}}, {name = "batches"}
]
"""
TASKS, LETTERS = NAMES.tasks, NAMES.dead_letters


@pytest.fixture
async def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsServer]:
    """A nats-server that includes the file as an operator would, with the streams made by `admin`."""
    for variable, password in passwords().items():
        monkeypatch.setenv(variable, password)
    (tmp_path / "permissions.conf").write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    config = tmp_path / "nats.conf"
    config.write_text("include permissions.conf\n", encoding="utf-8")
    log = StackLog(tmp_path / "guarded.log")
    server = NatsServer(tmp_path / "guarded", log, arguments=("--config", str(config)))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        log.close()


def violations(folder: Path) -> list[str]:
    """What the server has denied."""
    return [line for line in (folder / "guarded.log").read_text().splitlines() if VIOLATION in line]


async def topology(verb: str, server: NatsServer, folder: Path, user: str = "admin") -> tuple[int | None, str]:
    """`headrace topology …` as a user whose password is in a file."""
    secret = folder / f"{user}.password"
    secret.write_text(PASSWORD.format(user=user) + "\n", encoding="utf-8")
    (folder / "headrace.toml").write_text(TOML, encoding="utf-8")
    environ = {"HEADRACE_NATS_USER": user, "HEADRACE_NATS_PASSWORD_FILE": str(secret)}
    arguments = ("topology", verb, "--nats-url", server.url, "--config", str(folder / "headrace.toml"))
    return await headrace(*arguments, **environ)


@asynccontextmanager
async def bus_of(server: NatsServer, user: str) -> AsyncIterator[Bus]:
    bus = Bus(server.url, name=f"test {user}", access=access_of(user))
    try:
        assert await bus.connect(5.0), bus.problem
        await eventually(lambda: bus.jetstream)
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def services(database_url: str, server: NatsServer, folder: Path, **users: str) -> AsyncIterator[Fleet]:
    """A fleet of which each service is its user, or the one that `users` names for it."""
    log = StackLog(folder / "fleet.log")
    fleet = Fleet(database_url, server.url, folder, log, "workshop", TOML)
    try:
        for name in ("producer", "consumer", "consumer-2", "status"):
            user = users.get(name, name.partition("-")[0])
            # A URL without a user: this way the settings for it are seen to work.
            password = PASSWORD.format(user=user)
            fleet.add(name, create_queues="false", nats_url=server.url, nats_user=user, nats_password=password)
        yield fleet
    finally:
        for service in fleet.services.values():
            await service.stop()
        log.close()


async def problems(client: Client) -> list[str]:
    """What the system says is wrong."""
    return list((await client.system_status()).problems)


def test_the_file_is_what_the_command_prints_for_the_default_names() -> None:
    assert FILE.read_text(encoding="utf-8") == document(NAMES), (
        "run: headrace topology permissions > deploy/nats/permissions.conf"
    )


async def test_the_command_prints_it_for_other_names(tmp_path: Path) -> None:
    code, text = await headrace("topology", "permissions", HEADRACE_SUBJECT_PREFIX="stage", cwd=str(tmp_path))
    assert code == 0
    assert text == document(StreamNames("STAGE", "stage"))
    assert "headrace." not in text.replace("headrace topology", "")


@pytest.mark.timeout(120)
async def test_the_whole_life_of_tasks_under_these_users(
    database_url: str, guarded: NatsServer, tmp_path: Path
) -> None:
    code, output = await topology("apply", guarded, tmp_path)
    assert code == 0, output
    assert (await topology("verify", guarded, tmp_path))[0] == 0
    ledger, release = tmp_path / "ledger", tmp_path / "release"
    ledger.touch()
    async with services(database_url, guarded, tmp_path) as fleet:
        await fleet.start("producer", "consumer", "status")
        async with fleet.client() as client:
            await _runs_and_is_watched(client)
            await _fails_is_redriven_and_discarded(client, str(ledger))
            await _is_no_task(client, guarded)
            task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
            await eventually(lambda: "start 1\n" in ledger.read_text(), within=20)
            await fleet.start("consumer-2")
            assert await fleet.stop("consumer") == [0]  # a drain: its unit goes to the other one
            await eventually(lambda: "start 2\n" in ledger.read_text(), within=20)
            await _falls_back_and_returns(client, guarded, release, task.id)
            assert await problems(client) == []
    assert violations(tmp_path) == []


async def _runs_and_is_watched(client: Client) -> None:
    await eventually(lambda: _has_no_problems(client), within=20)
    squares = await client.submit("squares", {"count": 5})
    assert (await client.wait(squares.id, timeout=20)).result.struct_value["sum"] == 30
    counts = await client.submit("counts", {"steps": 3})
    events = [event async for event in client.watch(counts.id)]
    assert len(events) > 3
    later = await client.submit("counts", {"steps": 1}, queue="default")
    assert (await client.wait(later.id, timeout=20)).result.struct_value["steps"] == 1


async def _fails_is_redriven_and_discarded(client: Client, ledger: str) -> None:
    failed = await client.submit("hopeless", {"ledger": ledger})
    await client.wait(failed.id, timeout=20)
    await client.dead_letters.redrive(ids=[f"{failed.id}-1"])
    await eventually(lambda: _letters_are(client, [f"{failed.id}-2"]), within=20)
    await client.dead_letters.discard(ids=[f"{failed.id}-2"])
    await eventually(lambda: _letters_are(client, []), within=20)


async def _is_no_task(client: Client, server: NatsServer) -> None:
    """A message that no producer sent is terminated by the consumer, and the advisory of that reaches the producer."""
    async with bus_of(server, "producer") as bus:
        await bus.send(NAMES.task_subject("default.normal"), b"no task")
        await bus.flush()

    async def has_one() -> bool:
        return [bool(letter.task_id) async for letter in client.dead_letters.list()] == [False]

    await eventually(has_one, within=20)
    await client.dead_letters.discard(ids=[letter.id async for letter in client.dead_letters.list()])


async def _falls_back_and_returns(client: Client, server: NatsServer, release: Path, held: str) -> None:
    await server.kill()
    release.touch()
    await client.wait(held, timeout=30)
    alone = await client.submit("counts", {"steps": 1})
    await client.wait(alone.id, timeout=30)
    await server.start()
    await eventually(lambda: _has_no_problems(client), within=30)
    again = await client.submit("squares", {"count": 2})
    await client.wait(again.id, timeout=30)


async def _has_no_problems(client: Client) -> bool:
    return await problems(client) == []


async def _letters_are(client: Client, wanted: list[str]) -> bool:
    return [letter.id async for letter in client.dead_letters.list()] == wanted


FORBIDDEN = {
    "producer": [
        f"$JS.API.STREAM.CREATE.{TASKS}",
        f"$JS.API.STREAM.UPDATE.{TASKS}",
        f"$JS.API.STREAM.DELETE.{TASKS}",
        f"$JS.API.STREAM.DELETE.{LETTERS}",
        f"$JS.API.STREAM.PURGE.{TASKS}",
        f"$JS.API.CONSUMER.DELETE.{TASKS}.default-normal",
        f"$JS.API.CONSUMER.MSG.NEXT.{TASKS}.default-normal",
        "$JS.ACK.HEADRACE_TASKS.default-normal.1.1.1.1.0",
        "$JS.API.STREAM.CREATE.OTHER",
        "_INBOX.headrace-consumer.1",
    ],
    "consumer": [
        f"$JS.API.STREAM.CREATE.{TASKS}",
        f"$JS.API.STREAM.DELETE.{TASKS}",
        f"$JS.API.STREAM.PURGE.{TASKS}",
        f"$JS.API.STREAM.PURGE.{LETTERS}",
        f"$JS.API.STREAM.MSG.GET.{TASKS}",
        f"$JS.API.STREAM.MSG.DELETE.{TASKS}",
        f"$JS.API.STREAM.MSG.DELETE.{LETTERS}",
        f"$JS.API.CONSUMER.DELETE.{TASKS}.default-normal",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{TASKS}.mine",
        NAMES.task_subject("default.normal"),
        NAMES.cancel_subject,
    ],
    "status": [
        f"$JS.API.STREAM.CREATE.{TASKS}",
        f"$JS.API.STREAM.DELETE.{TASKS}",
        f"$JS.API.STREAM.MSG.GET.{TASKS}",
        f"$JS.API.CONSUMER.CREATE.{TASKS}",
        f"$JS.API.CONSUMER.MSG.NEXT.{TASKS}.default-normal",
        NAMES.task_subject("default.normal"),
        NAMES.dead_letter_subject("default", "x"),
        NAMES.wake_subject,
        NAMES.cancel_subject,
    ],
    "admin": [
        f"$JS.API.STREAM.DELETE.{TASKS}",
        f"$JS.API.STREAM.PURGE.{TASKS}",
        "$JS.API.STREAM.CREATE.OTHER",
        NAMES.task_subject("default.normal"),
    ],
}


@pytest.mark.parametrize("user", FORBIDDEN)
async def test_what_a_user_does_not_need_is_denied_at_once_and_by_name(guarded: NatsServer, user: str) -> None:
    async with bus_of(guarded, user) as bus:
        for subject in FORBIDDEN[user]:
            async with asyncio.timeout(2):
                with pytest.raises(Denied, match="does not let this user publish on") as denied:
                    await bus.request(subject, {}, timeout=5)
            assert subject in str(denied.value)
        assert "headrace topology permissions" in bus.denied


@pytest.mark.parametrize("user", [*SERVICES, "admin"])
@pytest.mark.parametrize("subject", [">", "_INBOX.>", "headrace.tasks.>", "$JS.API.>", "_INBOX.headrace-other.>"])
async def test_nobody_listens_to_what_is_not_for_him(guarded: NatsServer, user: str, subject: str) -> None:
    async with bus_of(guarded, user) as bus:
        await bus.subscribe(subject, lambda _message: None)
        await eventually(lambda: f"subscribe to {subject.lower()}" in bus.denied)


async def test_a_wrong_password_is_a_sentence_without_it(guarded: NatsServer) -> None:
    bus = Bus(guarded.url, name="test", access=Access(user="status", password="wrong-secret"))
    try:
        assert not await bus.connect(1.0)
        await eventually(lambda: "uthorization" in bus.problem)
        assert "wrong-secret" not in bus.problem
    finally:
        await bus.close()


@pytest.mark.parametrize(
    ("service", "user", "said"),
    [
        ("status", "consumer", "NATS does not let this user subscribe to"),
        ("consumer", "status", "consumers take work from Postgres, as they do not get it from the broker"),
    ],
)
async def test_a_service_with_the_wrong_user_is_a_named_problem_and_work_goes_on(
    database_url: str, guarded: NatsServer, tmp_path: Path, service: str, user: str, said: str
) -> None:
    assert (await topology("apply", guarded, tmp_path))[0] == 0
    async with services(database_url, guarded, tmp_path, **{service: user}) as fleet:
        await fleet.start("producer", "consumer", "status")
        async with fleet.client() as client:
            task = await client.submit("squares", {"count": 2})
            assert (await client.wait(task.id, timeout=30)).result.struct_value["sum"] == 1

            async def is_named() -> bool:
                return said in " ".join(await problems(client))

            await eventually(is_named, within=20)


async def test_whoever_is_not_admin_makes_no_streams(guarded: NatsServer, tmp_path: Path) -> None:
    code, output = await topology("apply", guarded, tmp_path, "producer")
    assert code == 1
    assert "Traceback" not in output
    assert PASSWORD.format(user="producer") not in output
