"""TLS to Postgres and to NATS, with real servers: what another authority certified is refused with a sentence."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import psycopg
import pytest

from headrace_core.bus.access import Access
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from headrace_core.bus.topology import apply_topology
from headrace_core.db.migrate import migrate
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack import postgres
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.stack.ports import LOOPBACK
from headrace_core.stack.postgres import Postgres
from headrace_core.tasks.scaling import read_active
from tests.deploy.tools import missing
from tests.fixtures.waiting import eventually
from tests.privileges.certificates import Authority, Pair
from tests.privileges.programs import headrace

SECRET = "pa55-word"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


# -- Postgres --------------------------------------------------------------------------------------------------------


def _with_tls() -> Path:
    """The folder of a Postgres of the system's, the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found:
        missing("a Postgres with TLS is not installed; get it with: apt-get install postgresql")
    return found[-1].parent


def _arguments(folder: Path) -> list[str]:
    """For older versions, too, which have no locales of their own."""
    return ["-D", str(folder), "--locale=C", "--encoding=UTF8", "--username=postgres", "--auth=trust"]


@pytest.fixture
async def guarded_url(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A Postgres that wants TLS and a password of everybody, and a certificate of its role too of `certified`."""
    server_pair = authority.certify("server")
    log = StackLog(tmp_path / "postgres.log")
    settings = {
        "ssl": "on",
        "ssl_cert_file": str(server_pair.certificate),
        "ssl_key_file": str(server_pair.key),
        "ssl_ca_file": str(authority.file),
    }
    # The wheel's Postgres is built without TLS.
    monkeypatch.setattr(postgres, "postgres_folder", _with_tls)
    monkeypatch.setattr(postgres, "_initdb_arguments", _arguments)
    server = Postgres(tmp_path / "postgres", log, settings=settings)
    try:
        await server.start()
        await migrate(await server.create_database("headrace"))
        async with await psycopg.AsyncConnection.connect(server.url(), autocommit=True) as owner:
            await owner.execute(f"create role watcher login password '{SECRET}' in role headrace_status".encode())
            await owner.execute(b"create role certified login in role headrace_status")
        (tmp_path / "postgres" / "pg_hba.conf").write_text(
            "hostssl headrace watcher 127.0.0.1/32 scram-sha-256\nhostssl headrace certified 127.0.0.1/32 cert\n"
        )
        await server.stop()
        await server.start()
        yield f"{LOOPBACK}:{server.port}/headrace?connect_timeout=5"
    finally:
        await server.stop()
        log.close()


async def _ask(url: str) -> Mapping[str, bool]:
    database = Database(url, max_size=2)
    await database.open()
    try:
        return await read_active(database)
    finally:
        await database.close()


async def test_a_service_reaches_postgres_over_tls_alone(guarded_url: str, authority: Authority) -> None:
    tls = f"&sslmode=verify-full&sslrootcert={authority.file}"
    assert await _ask(f"postgresql://watcher:{SECRET}@{guarded_url}{tls}") == {"default": False}
    with pytest.raises(DatabaseUnavailable):
        await _ask(f"postgresql://watcher:{SECRET}@{guarded_url}&sslmode=disable")


async def test_a_client_certificate_takes_the_place_of_a_password(guarded_url: str, authority: Authority) -> None:
    tls = f"&sslmode=verify-full&sslrootcert={authority.file}"
    own, other = authority.certify("certified"), authority.certify("somebody")

    def url(pair: Pair) -> str:
        return f"postgresql://certified@{guarded_url}{tls}&sslcert={pair.certificate}&sslkey={pair.key}"

    assert await _ask(url(own)) == {"default": False}
    with pytest.raises(DatabaseUnavailable):
        await _ask(url(other))


async def test_a_postgres_of_another_authority_is_refused_with_a_sentence(
    guarded_url: str, stranger: Authority
) -> None:
    url = f"postgresql://watcher:{SECRET}@{guarded_url}&sslmode=verify-full&sslrootcert={stranger.file}"
    code, output = await headrace("db", "verify", "--database-url", url)
    assert code == 1
    assert "certificate verify failed" in output
    assert "Traceback" not in output
    assert SECRET not in output


@pytest.mark.parametrize("wrong", ["watcher:not-{secret}@", "nobody:{secret}@"])
async def test_a_refused_password_is_never_shown(guarded_url: str, authority: Authority, wrong: str) -> None:
    url = f"postgresql://{wrong.format(secret=SECRET)}{guarded_url}&sslmode=verify-full&sslrootcert={authority.file}"
    for verb in ("verify", "migrate"):
        code, output = await headrace("db", verb, "--database-url", url)
        assert code == 1
        assert SECRET not in output
    with pytest.raises(DatabaseUnavailable) as refused:
        await _ask(url)
    assert SECRET not in str(refused.value)


async def test_passwords_in_addresses_are_not_logged(guarded_url: str, authority: Authority) -> None:
    """A service logs where its servers are when it serves, and why it does not get there."""
    tls = f"&sslmode=verify-full&sslrootcert={authority.file}"
    for database in (f"watcher:{SECRET}@{guarded_url}{tls}", f"{guarded_url}{tls}&user=watcher&password={SECRET}"):
        output = await _log_of_status(f"postgresql://{database}", f"nats://status:{SECRET}@127.0.0.1:1")
        assert "serving" in output
        assert SECRET not in output
    output = await _log_of_status(
        f"postgresql://watcher:not-{SECRET}@{guarded_url}{tls}", f"nats://{SECRET}@127.0.0.1:1"
    )
    assert SECRET not in output


async def _log_of_status(database_url: str, nats_url: str) -> str:
    """What the status service says in its first moments."""
    environ = {"HEADRACE_DATABASE_URL": database_url, "HEADRACE_NATS_URL": nats_url, "HEADRACE_LOG_LEVEL": "debug"}
    environ |= {"HEADRACE_LISTEN": "127.0.0.1:0", "HEADRACE_HTTP_LISTEN": "127.0.0.1:0"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "status", env=inherited | environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(30):
            while not any("serving" in line or "Postgres" in line for line in lines):
                lines.append((await process.stderr.readline()).decode())
    finally:
        process.terminate()
        _, rest = await process.communicate()
    return "".join(lines) + rest.decode()


# -- NATS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def nats_over_tls(tmp_path: Path, authority: Authority) -> AsyncIterator[NatsServer]:
    """A nats-server that wants TLS and a certificate of the authority from everybody."""
    pair = authority.certify("server")
    arguments = ("--tlsverify", "--tlscert", str(pair.certificate), "--tlskey", str(pair.key))
    log = StackLog(tmp_path / "nats.log")
    server = NatsServer(tmp_path / "nats", log, arguments=(*arguments, "--tlscacert", str(authority.file)))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        log.close()


def _address(server: NatsServer) -> str:
    return f"tls://{LOOPBACK}:{server.port}"


async def test_messages_travel_over_tls_in_pieces_of_any_size(nats_over_tls: NatsServer, authority: Authority) -> None:
    """The bus writes to the transport itself, past the library: 10,000 messages and their answers in windows."""
    own = authority.certify("consumer")
    access = Access(ca_file=authority.file, cert_file=own.certificate, key_file=own.key)
    await apply_topology(_address(nats_over_tls), StreamNames(), [QueueSettings(name="default")], access=access)
    bus = Bus(_address(nats_over_tls), name="test", access=access)
    publisher = Publisher(bus)
    try:
        assert await bus.connect(5.0), bus.problem
        results = await publisher.publish(
            [OutgoingMessage("headrace.tasks.default.normal", b"x" * (n % 4000)) for n in range(10_000)]
        )
        assert [result.reason for result in results if not result.accepted] == []
        assert results[-1].sequence == 10_000
    finally:
        await publisher.close()
        await bus.close()


@pytest.mark.parametrize("shown", ["stranger's authority", "no certificate", "stranger's certificate"])
async def test_a_nats_that_cannot_be_trusted_or_does_not_trust_us_is_a_sentence(
    nats_over_tls: NatsServer, authority: Authority, stranger: Authority, shown: str
) -> None:
    own = (stranger if shown == "stranger's certificate" else authority).certify("consumer")
    access = Access(
        ca_file=(stranger if shown == "stranger's authority" else authority).file,
        cert_file=None if shown == "no certificate" else own.certificate,
        key_file=None if shown == "no certificate" else own.key,
    )
    bus = Bus(_address(nats_over_tls), name="test", access=access)
    try:
        assert not await bus.connect(1.0)
        said = "certificate verify failed" if shown == "stranger's authority" else "ertificate|nnection|unknown ca"
        await eventually(lambda: bus.problem != "not connected yet")
        assert any(word in bus.problem for word in said.split("|")), bus.problem
    finally:
        await bus.close()


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_no_password_goes_to_a_server_without_tls_where_tls_is_asked_for(
    nats_server: NatsServer, authority: Authority, scheme: str
) -> None:
    """Whoever is in between could otherwise take TLS out of the server's first word, and read the password."""
    access = Access(user="status", password=SECRET, ca_file=authority.file if scheme == "nats" else None)
    bus = Bus(f"{scheme}://{LOOPBACK}:{nats_server.port}", name="test", access=access)
    try:
        assert not await bus.connect(1.0)
        await eventually(lambda: "TLS is asked for, and the server offers none" in bus.problem)
    finally:
        await bus.close()


async def test_files_are_read_at_each_connection(
    nats_over_tls: NatsServer, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    trusted, own = tmp_path / "trusted.crt", authority.certify("consumer")
    bus = Bus(_address(nats_over_tls), name="test", access=Access(trusted, own.certificate, own.key))
    try:
        assert not await bus.connect(0.5)
        await eventually(lambda: f"{trusted} holds no certificate" in bus.problem)
        trusted.write_bytes(stranger.file.read_bytes())
        await eventually(lambda: "certificate verify failed" in bus.problem)
        trusted.write_bytes(authority.file.read_bytes())
        await eventually(lambda: bus.jetstream, within=10)
    finally:
        await bus.close()
