"""The local stack's nats-server: one URL over restarts, data kept, trouble said in one sentence."""

import signal
from pathlib import Path

import pytest

from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from tests.fixtures.nats_wire import request


async def test_streams_survive_a_stop_and_a_kill(nats_server: NatsServer) -> None:
    url = nats_server.url
    created = await request(url, "$JS.API.STREAM.CREATE.KEPT", '{"name": "KEPT", "subjects": ["kept"]}')
    assert '"created"' in created
    await nats_server.stop()
    await nats_server.start()
    assert nats_server.url == url
    await nats_server.kill()
    await nats_server.start()
    assert nats_server.url == url
    assert '"KEPT"' in await request(url, "$JS.API.STREAM.NAMES", "")


async def test_a_taken_port_is_said_with_the_servers_own_words(nats_server: NatsServer, tmp_path: Path) -> None:
    log = StackLog(tmp_path / "second.log")
    second = NatsServer(tmp_path / "second", log, port=nats_server.port)
    try:
        with pytest.raises(StackError, match="address already in use"):
            await second.start()
    finally:
        await second.stop()
        log.close()


async def test_stop_ends_a_frozen_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_core.stack.nats.STOP_PHASES", ((signal.SIGTERM, 0.2),))
    log = StackLog(tmp_path / "log")
    server = NatsServer(tmp_path / "nats", log)
    await server.start()
    server.pause()
    await server.stop()
    assert await server.wait() == -signal.SIGKILL
    await server.stop()
    log.close()
    assert "ignored SIGTERM" in (tmp_path / "log").read_text()
