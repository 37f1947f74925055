"""The connection: always being made, never waited for, and honest about its state.

Each connection is a new nats-py client. Its own reconnect keeps unsent commands of the dead connection and sends
them later (stale pull requests and publishes), ends for good on some server errors, and hangs where a frozen server
keeps the socket from draining. A new client has none of that; subscriptions live in a registry here and are made
again on every connection.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nats.aio.client import Client

from headrace_core.bus.access import Access
from headrace_core.bus.denials import Denials
from headrace_core.bus.errors import (
    CLIENT_ERRORS,
    AccessUnusable,
    BusError,
    BusUnavailable,
    JetStreamMissing,
    NoQuorum,
    from_answer,
    from_client,
)
from headrace_core.bus.subscription import MessageCallback, Subscription
from headrace_core.bus.wire import DirectClient, publish_command
from headrace_core.telemetry import logs, metrics

RECONNECT_SECONDS = 0.25
CONNECT_SECONDS = 2.0  # for TCP, INFO and CONNECT, each; also for the whole of one round of attempts
PING_SECONDS = 2.0  # three unanswered pings end a connection: a frozen server is noticed within about 6 s
WATCH_SECONDS = 0.5
JETSTREAM_SECONDS = 2.0
JETSTREAM_AGAIN_SECONDS = 5.0
# Unanswered questions in a row: one may be a slow server, several a connection that no longer hears its answers.
DOUBTFUL = 2
DEAF = 3
CLOSE_SECONDS = 2.0
DEFAULT_MAX_PAYLOAD = 1024 * 1024  # the server tells its own
REQUEST_SECONDS = 5.0
# While a server is frozen nats-py buffers without a bound. Beyond this much we are as good as disconnected.
MAX_BUFFERED_BYTES = 16 * 1024 * 1024

StateCallback = Callable[[bool], None]

_log = logs.get("headrace.bus")


class Bus:
    """One connection to NATS, kept up in the background from `connect` to `close`.

    `url` is one URL or several of one cluster, separated by commas. `name` is shown by the server's monitoring.
    `access` says how we show who we are.
    """

    def __init__(self, url: str, *, name: str, access: Access | None = None) -> None:
        self.name = name
        self._access = access or Access()
        self._denials = Denials()
        self._servers = [part.strip() for part in url.split(",") if part.strip()]
        if not self._servers:
            raise ValueError("the NATS URL is empty; give one like nats://host:4222")
        self._client: DirectClient | None = None
        self._subscriptions: dict[Subscription, None] = {}
        self._callbacks: dict[object, StateCallback] = {}
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._problem = "not connected yet"
        self._jetstream = False
        self._unanswered = 0
        self._hide: Callable[[], None] = lambda: None

    @property
    def connected(self) -> bool:
        """Whether a connection is up, as far as we know: a frozen server is noticed within about 6 seconds."""
        return self._client is not None and self._client.is_connected

    @property
    def jetstream(self) -> bool:
        """Whether JetStream answered this connection for this account."""
        return self.connected and self._jetstream

    @property
    def problem(self) -> str:
        """Why there is no connection or no JetStream, as a sentence; empty when all is well."""
        return "" if self.jetstream else self._problem

    @property
    def denied(self) -> str:
        """What NATS does not let us do on this connection, as a sentence; empty: nothing that we know of."""
        return self._denials.sentence()

    def on_state_change(self, callback: StateCallback) -> Callable[[], None]:
        """Call `callback(connected)` from the event loop after every change; returns how to stop that.

        A connection is reported after its subscriptions are made and JetStream has been asked for. The callback may
        come again with the same value when only `jetstream` has changed.
        """
        key = object()
        self._callbacks[key] = callback
        return lambda: self._callbacks.pop(key, None) and None

    async def connect(self, timeout: float = CONNECT_SECONDS) -> bool:
        """Start connecting, for ever, and wait up to `timeout` seconds for it. Returns `connected`, never fails."""
        if self._task is None:
            self._hide = metrics.show(self._figures)
            self._task = asyncio.create_task(self._run(), name=f"bus-connection-{self.name}")
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            return False
        return self.connected

    async def close(self) -> None:
        """Send what is buffered (2 s at most) and disconnect for good. Idempotent."""
        self._hide()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=2 * CLOSE_SECONDS)

    async def subscribe(self, subject: str, callback: MessageCallback) -> Subscription:
        """Call `callback` for every message on `subject`, now and after every reconnect, until unsubscribed.

        The callback runs on the event loop and must not block. What it raises is logged.
        """
        subscription = Subscription(self, subject, callback)
        await subscription.start()
        return subscription

    async def remember(self, subscription: Subscription) -> None:
        """Make a subscription on this and every later connection. For Subscription only."""
        self._subscriptions[subscription] = None
        if self._client is not None:
            try:
                await subscription.attach(self._client)
            except CLIENT_ERRORS as error:
                _log.info("subscription waits for a connection", action="bus_subscribe_later", error=str(error))

    def forget(self, subscription: Subscription) -> None:
        """Take a subscription out of the registry. For Subscription only."""
        self._subscriptions.pop(subscription, None)

    def new_inbox(self) -> str:
        """Return a subject that nobody else has, to receive answers on."""
        return f"{self._access.inbox}.{secrets.token_hex(11)}"

    async def send(
        self, subject: str, body: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish on core NATS: buffered, unconfirmed, does not wait.

        Raises BusUnavailable while disconnected, RequestRefused for what could never be sent.
        """
        await self.send_commands([self.command(subject, body, reply, headers)])

    def command(self, subject: str, body: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
        """Return the protocol's command that publishes a message, for `send_commands`. Raises RequestRefused."""
        limit = DEFAULT_MAX_PAYLOAD if self._client is None else self._client.max_payload
        return publish_command(subject, body, reply, headers, limit)

    async def send_commands(self, commands: Sequence[bytes]) -> None:
        """Send many commands in one piece, as `send` does one. Raises BusUnavailable while disconnected."""
        client = self._live_client()
        try:
            data = b"".join(commands)
            if not client.write_now(data):
                await client._send_command(data)
                await client._flush_pending()
        except CLIENT_ERRORS as error:
            raise from_client("publish", error) from error

    async def flush(self, timeout: float = REQUEST_SECONDS) -> None:
        """Wait until the server has read everything sent before and we have received everything it sent before that.

        Raises BusUnavailable.
        """
        client = self._live_client()
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        inbox = self.new_inbox()
        try:
            # A message to ourselves: the library's flush writes its PING ahead of what is still buffered, and a
            # PONG after a time-out breaks its reader.
            async with asyncio.timeout(timeout):
                subscription = await client.subscribe(inbox, future=future)
                try:
                    await client.publish(inbox)
                    await future
                finally:
                    await subscription.unsubscribe()
        except CLIENT_ERRORS as error:
            raise from_client("flush", error) from error

    async def request(
        self, subject: str, payload: Mapping[str, Any] | None = None, timeout: float = REQUEST_SECONDS
    ) -> dict[str, Any]:
        """Ask the JetStream API (`$JS.API.…`) and return its answer, parsed.

        Raises StreamMissing, DurableMissing, StreamFull, JetStreamMissing, RequestRefused; Denied; BusUnavailable when
        there is no connection or no answer within `timeout` seconds (the request may have taken effect).
        """
        client = self._live_client()
        body = b"" if payload is None else json.dumps(payload).encode()
        asked_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout + 1.0) as limit:
                with self._denials.ending(subject, limit):
                    message = await client.request(subject, body, timeout=timeout)
        except CLIENT_ERRORS as error:
            raise self._denials.of(subject, asked_at) or from_client(subject, error) from error
        return _parsed(subject, message.data)

    def _figures(self) -> metrics.Figures:
        yield metrics.broker_up.labels("connection"), float(self.connected)
        yield metrics.broker_up.labels("jetstream"), float(self.jetstream)

    def _live_client(self) -> DirectClient:
        client = self._client
        if client is None or not client.is_connected:
            raise BusUnavailable(f"no connection to {self._where()}: {self._problem}")
        if client.pending_data_size > MAX_BUFFERED_BYTES:
            raise BusUnavailable(f"{self._where()} takes nothing: {client.pending_data_size} bytes are waiting")
        return client

    def _where(self) -> str:
        # A URL may hold a password.
        return ",".join(server.rsplit("@", 1)[-1].removeprefix("nats://") for server in self._servers)

    @property
    def _needs_tls(self) -> bool:
        return self._access.needs_tls or any(server.startswith("tls://") for server in self._servers)

    # -- the background task: owner is this object, failure policy is to go on -------------------------------

    async def _run(self) -> None:
        while True:
            try:
                client = await self._open()
                if client is not None:
                    await self._serve(client)
            except Exception:  # noqa: BLE001 - see below
                # Whatever it was, a service without a bus goes on from Postgres: say it and try again.
                _log.exception("the bus connection failed unexpectedly", action="bus_connection_failed")
            await asyncio.sleep(RECONNECT_SECONDS * (0.75 + secrets.randbelow(500) / 1000))

    async def _open(self) -> DirectClient | None:
        client = DirectClient(needs_tls=self._needs_tls)
        try:
            options = await asyncio.to_thread(self._access.options)
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                await client.connect(
                    list(self._servers),
                    name=self.name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # then a new client
                    reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type] # any number will do
                    connect_timeout=CONNECT_SECONDS,  # type: ignore[arg-type]
                    ping_interval=PING_SECONDS,  # type: ignore[arg-type]
                    max_outstanding_pings=2,
                    pending_size=0,  # publishing while disconnected fails instead of being buffered
                    error_cb=self._note_error,
                    **options,
                )
        except AccessUnusable as error:
            self._problem = error.message
            return None
        except CLIENT_ERRORS as error:
            self._problem = str(client.last_error or error) or type(error).__name__
            await client.discard(CLOSE_SECONDS)
            return None
        except BaseException:
            await client.discard(CLOSE_SECONDS)
            raise
        return client

    async def _serve(self, client: DirectClient) -> None:
        try:
            self._denials.clear()
            self._client = client
            for subscription in list(self._subscriptions):
                await subscription.attach(client)
            await self._look_for_jetstream()
            self._announce(connected=True)
            await self._until_lost(client)
        except CLIENT_ERRORS as error:
            self._problem = str(error) or type(error).__name__
        finally:
            self._client = None
            self._jetstream = False
            self._unanswered = 0
            self._announce(connected=False)
            await client.discard(CLOSE_SECONDS)

    async def _until_lost(self, client: Client) -> None:
        """Return once the connection is lost, or of no use although it is open.

        It is looked at instead of waited for: the library sets the state at once but calls back only after closing
        the socket, which never happens with data buffered for a frozen server.
        """
        loop = asyncio.get_running_loop()
        next_look = loop.time() + JETSTREAM_AGAIN_SECONDS
        while client.is_connected:
            await asyncio.sleep(WATCH_SECONDS)
            if loop.time() > next_look:
                next_look = loop.time() + JETSTREAM_AGAIN_SECONDS
                before = self._jetstream
                await self._look_for_jetstream()
                if self._jetstream != before:
                    self._announce(connected=True)
                if self._unanswered >= DEAF and client.is_connected:
                    _log.warning("JetStream is silent, connecting anew", action="bus_deaf", problem=self._problem)
                    return
        self._problem = str(client.last_error or "the connection was lost") or "the connection was lost"

    async def _look_for_jetstream(self) -> None:
        """Ask whether JetStream answers. What it has answered before holds until two questions were in vain."""
        try:
            await self.request("$JS.API.INFO", timeout=JETSTREAM_SECONDS)
        except BusError as error:
            self._unanswered += 1
            if not self._jetstream or self._unanswered >= DOUBTFUL:
                self._jetstream, self._problem = False, self._why_no_jetstream(error)
        else:
            self._jetstream, self._problem, self._unanswered = True, "", 0

    def _why_no_jetstream(self, error: BusError) -> str:
        where = self._where()
        seen = "" if self._client is None else str(self._client.last_error or "")
        if isinstance(error, JetStreamMissing) or "permissions violation" in seen.lower():
            self._unanswered = 0  # it is heard, and another connection would hear the same
        if isinstance(error, JetStreamMissing):
            return (
                f"the NATS at {where} has no JetStream for this account: start nats-server with --jetstream, "
                "or enable it for the account"
            )
        if isinstance(error, NoQuorum):
            return f"JetStream at {where} has no quorum: {error.message}"
        why = self._denials.sentence() or f"{error.message} {seen}".rstrip()
        return f"JetStream at {where} does not answer, is $JS.API.> allowed? {why}"

    def _announce(self, *, connected: bool) -> None:
        if connected:
            self._up.set()
        else:
            self._up.clear()
        _log.info(
            "connected" if connected else "disconnected",
            action="bus_connected" if connected else "bus_disconnected",
            server=self._where(),
            problem=self._problem,
        )
        loop = asyncio.get_running_loop()
        for callback in list(self._callbacks.values()):
            # Each on its own: what one raises is logged by the loop and does not concern the others.
            loop.call_soon(callback, connected)

    async def _note_error(self, error: Exception) -> None:
        """Be told by nats-py of an error of the connection, whose end we see ourselves."""
        if self._client is None:  # else it is a refused command, and what JetStream said of itself counts
            self._problem = str(error) or type(error).__name__
        elif self._denials.note(str(error)):
            _log.warning(self._denials.sentence(), action="bus_denied")
        _log.debug("NATS reports an error", action="bus_client_error", error=str(error))


def _parsed(subject: str, data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise BusError(f"{subject}: the answer is not JSON: {data[:80]!r}") from error
    if not isinstance(answer, dict):
        raise BusError(f"{subject}: the answer is no JSON object: {data[:80]!r}")
    if "error" in answer:
        raise from_answer(subject, answer["error"])
    return answer
