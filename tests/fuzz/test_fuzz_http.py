"""Every HTTP endpoint, asked anything, in bytes: a status below 500 (503 where it says so), and never the inside."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from headrace_core.runtime.http import HttpServer
from headrace_core.runtime.ops import ops_app
from headrace_core.settings.environment import load_settings
from headrace_core.stack.loop_thread import LoopThread
from status.app import StatusService
from tests.fixtures.servers import PostgresSession
from tests.fuzz.trying import attempt_all
from tests.fuzz.wire_forms import mutated

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module")

PATIENCE_SECONDS = 0.1
"""For an answer: half of what is sent is no whole request, and gets none."""
OPS = (b"/livez", b"/readyz", b"/metrics")
STATUS = (b"/api/async-status", b"/api/ai-status")
ANSWERED = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
INSIDE = re.compile(rb"Traceback|File \"|\.py\b|site-packages|Error\(")


@pytest.fixture(scope="module")
def ports(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The operator's port and the status service's, on a loop of their own."""
    session: PostgresSession = request.getfixturevalue("postgres_session")
    template: str = request.getfixturevalue("migrated_template")
    url = session.loop.run(session.server.create_database("fuzzed_http", template=template))
    loop = LoopThread("fuzzed-http")
    environ = {"HEADRACE_DATABASE_URL": url, "HEADRACE_HTTP_LISTEN": "127.0.0.1:0", "HEADRACE_BROKER": "none"}
    status = StatusService(load_settings(environ, default_listen="127.0.0.1:0", cwd=Path("/")))
    ops = HttpServer(ops_app(status.problems), "127.0.0.1:0", name="ops")
    try:
        loop.run(status.start())
        assert status.http_address is not None
        yield {"ops": loop.run(ops.start()), "status": status.http_address}
        loop.run(status.drain())
    finally:
        loop.run(ops.stop())
        loop.run(status.stop())
        loop.close()
        session.loop.run(session.server.drop_database("fuzzed_http"))


def raw_requests(paths: tuple[bytes, ...]) -> SearchStrategy[bytes]:
    """Requests of any method, path, headers and body; broken ones; no requests at all."""
    method = st.sampled_from(
        [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"G\0T"]
    )
    path = st.one_of(
        st.sampled_from(paths),
        st.sampled_from([b"/", b"*", b"//", b"/%00", b"/%ff", b"/../../etc/passwd", b"/metrics?" + b"x=y&" * 500]),
        st.builds(bytes.__add__, st.sampled_from(paths), st.binary(max_size=8)),
        st.binary(max_size=20),
    )
    header = st.one_of(
        st.sampled_from(
            [
                b"Content-Length: -1",
                b"Content-Length: 99999999999999999999",
                b"Content-Length: 3",
                b"Transfer-Encoding: chunked",
                b"Transfer-Encoding: gzip, chunked",
                b"Expect: 100-continue",
                b"Upgrade: websocket\r\nConnection: Upgrade",
                b"Upgrade: h2c\r\nHTTP2-Settings: AAAA",
                b"Connection: close",
                b"Cookie: " + b"a=b; " * 3000,
                b"Range: bytes=0-,-1",
                b"Host: \xff",
                b"Accept-Encoding: gzip;q=x",
            ]
        ),
        st.binary(max_size=20),
    )
    version = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"\xff"])
    body = st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n"]) | st.binary(
        max_size=30
    )
    whole = st.builds(
        lambda word, where, how, lines, rest: word + b" " + where + b" " + how + b"\r\n"
        + b"".join(line + b"\r\n" for line in [b"Host: x", *lines]) + b"\r\n" + rest,
        method, path, version, st.lists(header, max_size=4), body,
    )  # fmt: skip
    return st.one_of(whole, whole, mutated(whole), st.binary(max_size=100))


@pytest.mark.parametrize(("port", "paths"), [("ops", OPS), ("status", STATUS)], ids=["ops", "status"])
def test_whatever_is_asked_is_answered_or_hung_up_on(
    request: pytest.FixtureRequest, ports: dict[str, str], port: str, paths: tuple[bytes, ...]
) -> None:
    address = ports[port]

    def one(data: bytes) -> None:
        answer = _ask(address, data)
        assert not INSIDE.search(answer), answer[:300]
        for code in ANSWERED.findall(answer):
            assert int(code) < 500 or int(code) == 503, answer[:300]

    attempt_all(request, raw_requests(paths), one, inputs=120)
    for path in paths:
        answer = _ask(address, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 10.0)
        assert ANSWERED.match(answer), answer[:300]
        assert b" 500 " not in answer[:20]


def _ask(address: str, data: bytes, patience: float = PATIENCE_SECONDS) -> bytes:
    """Everything that is answered, until the server hangs up or has said nothing for a moment."""
    host, _, port = address.rpartition(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=patience) as connection:
        try:
            connection.sendall(data)
            while piece := connection.recv(65_536):
                found += piece
        except OSError:
            pass
    return found
