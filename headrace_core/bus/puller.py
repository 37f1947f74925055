"""Our own pull loop over a durable consumer: a callback per message, and no request that can be lost unnoticed.

nats-py's `fetch` holds messages back after an idle time-out and swallows cancellations. Here pull requests are
published with an inbox as reply; messages and statuses arrive there. Idle heartbeats tell a quiet queue from a deaf
connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence

from headrace_core.bus.connection import Bus
from headrace_core.bus.errors import BusError, BusUnavailable
from headrace_core.bus.subscription import Subscription
from headrace_core.bus.wire import Incoming
from headrace_core.telemetry import logs

EXPIRES_SECONDS = 30.0
# Of a lost leader nothing is heard: a request to it is repeated after two to three of these.
HEARTBEAT_SECONDS = 2.0
# A refused request (the durable is missing, its leader changes, the server stops) is not repeated before this.
REFUSED_PAUSE_SECONDS = 0.5
DRAIN_NAK_SECONDS = 0.2
DRAIN_SECONDS = 1.0
ACK_PREFIX = "$JS.ACK."
NANOSECONDS = 1_000_000_000

_log = logs.get("headrace.bus")


class Message:
    """A delivery. Answers are fire-and-forget: they return whether they were sent, and never raise.

    An answer that is lost costs a redelivery after ack_wait; the claim in Postgres decides what that means.
    """

    __slots__ = ("_message", "_places", "body", "bus", "reply", "subject")

    def __init__(self, bus: Bus, message: Incoming) -> None:
        self.bus = bus
        self.subject = message.subject
        self.body = message.data
        self.reply = message.reply
        self._message = message
        self._places: list[str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, empty without any."""
        return self._message.headers

    @property
    def deliveries(self) -> int:
        """How often this message has been delivered, this time included: from 1."""
        return int(self._place(0))

    @property
    def stream_sequence(self) -> int:
        """Its number in the stream."""
        return int(self._place(1))

    @property
    def timestamp(self) -> int:
        """When the stream stored it, by the server's clock: nanoseconds since 1970."""
        return int(self._place(3))

    async def ack(self) -> bool:
        """Done with: remove it from the stream."""
        return await self._answer(b"+ACK")

    async def in_progress(self) -> bool:
        """Still at it: the time to the redelivery starts again."""
        return await self._answer(b"+WPI")

    async def nak(self, delay: float) -> bool:
        """Deliver it again after `delay` seconds, not before; the delay does not survive a restart of the server."""
        return await self._answer(b'-NAK {"delay": %d}' % int(delay * NANOSECONDS))

    async def term(self, reason: str) -> bool:
        """Remove it and say why in an advisory. Copy it elsewhere first."""
        return await self._answer(b"+TERM " + " ".join(reason.split()).encode())

    async def _answer(self, body: bytes) -> bool:
        return await _answer_all([self], body) == 1

    def _place(self, index: int) -> str:
        # $JS.ACK.[<domain>.<account>.]<stream>.<durable>.<deliveries>.<stream seq>.<seq>.<time>.<pending>[.<token>]
        if self._places is None:
            tokens = self.reply.split(".")
            self._places = tokens[4:] if len(tokens) == 9 else tokens[6:]
        return self._places[index]


async def acknowledge(messages: Sequence[Message]) -> int:
    """Acknowledge many deliveries of one bus; returns for how many it was sent."""
    return await _answer_all(messages, b"+ACK")


async def in_progress(messages: Sequence[Message]) -> int:
    """Put off the redelivery of many deliveries of one bus; returns for how many it was sent."""
    return await _answer_all(messages, b"+WPI")


async def _answer_all(messages: Sequence[Message], body: bytes) -> int:
    if not messages:
        return 0
    bus = messages[0].bus
    try:
        await bus.send_commands([bus.command(message.reply, body) for message in messages])
    except BusUnavailable:
        return 0
    return len(messages)


class Puller:
    """Asks a durable consumer for messages and hands each to `on_message`.

    `on_idle` is called whenever `outstanding` has fallen without a message: a request expired or was refused, or
    the connection was lost and is back. It is where to call `request` again. Both callbacks are plain functions on
    the event loop and must not block. `expires` and `heartbeat` are seconds, heartbeat less than half of expires.

    After a rebuild, answers to requests from before it may still arrive: up to one request's messages more than
    asked for.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        durable: str,
        on_message: Callable[[Message], None],
        *,
        on_idle: Callable[[], None],
        expires: float = EXPIRES_SECONDS,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        if heartbeat * 2 >= expires:
            raise ValueError(f"heartbeat ({heartbeat} s) must be less than half of expires ({expires} s)")
        self.durable = durable
        self.outstanding = 0
        self.rebuilt = 0
        self._bus = bus
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._on_message = on_message
        self._on_idle = on_idle
        self._expires = expires
        self._heartbeat = heartbeat
        self._inbox = bus.new_inbox()
        self._requests: dict[str, tuple[int, float]] = {}
        self._number = 0
        self._heard = 0
        self._silent_checks = 0
        self._heard_at_check = 0
        self._heard_at = 0.0
        self._deaf = False
        self._refused_until = 0.0
        self._subscription: Subscription | None = None
        self._forget_state: Callable[[], object] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._stopping = False

    @property
    def silence(self) -> float:
        """For how many seconds nothing has come, not even a heartbeat, although something is asked for; else 0."""
        return self._now() - self._heard_at if self.outstanding or self._deaf else 0.0

    async def start(self) -> None:
        """Listen. Nothing comes before the first `request`; `on_idle` is called at every connection from now on."""
        if self._subscription is not None:
            return
        self._subscription = await self._bus.subscribe(f"{self._inbox}.*", self._receive)
        self._forget_state = self._bus.on_state_change(self._on_state_change)
        self._later("check", self._heartbeat, self._check)

    async def request(self, batch: int) -> bool:
        """Ask for `batch` more messages. False: not asked, `on_idle` will say when to ask again.

        That is so while disconnected, within half a second of a refusal, and once stopping.
        """
        if self._stopping or not self._bus.connected or self._now() < self._refused_until:
            return False
        if not self.outstanding and not self._deaf:
            self._heard_at = self._now()
        token = self._register(batch)
        body = {
            "batch": batch,
            "expires": int(self._expires * NANOSECONDS),
            "idle_heartbeat": int(self._heartbeat * NANOSECONDS),
        }
        try:
            await self._bus.send(self._next_subject, json.dumps(body).encode(), reply=f"{self._inbox}.{token}")
        except BusError:
            self._end(token, batch)
            return False
        return True

    async def stop(self) -> None:
        """Take no more, within about a second. Idempotent, legal before start.

        Messages that were on their way are put back with a nak of 0.2 s, so that another consumer has them at once
        and not after ack_wait.
        """
        self._stopping = True
        self.outstanding = 0
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._forget_state is not None:
            self._forget_state()
        if self._subscription is not None:
            await self._subscription.drain(DRAIN_SECONDS)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)

    # -- what arrives ------------------------------------------------------------------------------------------------

    def _receive(self, message: Incoming) -> None:
        if not message.reply.startswith(ACK_PREFIX):
            self._on_status(message)
            return
        self._note_heard()
        if self._stopping:
            self._put_back(Message(self._bus, message))
            return
        if self.outstanding > 0:
            self.outstanding -= 1
        self._on_message(Message(self._bus, message))

    def _note_heard(self) -> None:
        self._heard += 1
        self._heard_at = self._now()
        self._deaf = False

    def _put_back(self, message: Message) -> None:
        self._spawn("nak", message.nak(DRAIN_NAK_SECONDS))

    def _on_status(self, message: Incoming) -> None:
        headers = message.headers
        status, token = headers.get("Status", ""), message.subject.rsplit(".", 1)[-1]
        if self._stopping or token not in self._requests:
            return  # of a request from before a rebuild
        self._note_heard()
        if status == "100":
            return
        remaining = headers.get("Nats-Pending-Messages")
        batch, _ = self._requests[token]
        self._end(token, batch if remaining is None else int(remaining))
        if status in ("404", "408"):
            self._on_idle()
        else:
            self._on_refusal(status, headers.get("Description", ""))

    def _on_refusal(self, status: str, description: str) -> None:
        """Pause after 400, 409 and 503: asking again at once would only spin."""
        _log.warning(
            "a pull request was refused",
            action="pull_refused",
            durable=self.durable,
            status=status,
            description=description or "nobody answers: is the durable there?",
        )
        self._refused_until = self._now() + REFUSED_PAUSE_SECONDS
        self._later("idle", REFUSED_PAUSE_SECONDS, self._on_idle)

    def _on_state_change(self, connected: bool) -> None:
        if not connected:
            self._reset()
        elif not self._stopping:
            self._on_idle()

    def _check(self) -> None:
        """Find out that we are deaf: messages are asked for, and for two heartbeats in a row nothing came.

        Two, because a request may be younger than its first heartbeat, and because after a stall of our own event
        loop this runs before what has arrived meanwhile is read.
        """
        self._later("check", self._heartbeat, self._check)
        quiet = self.outstanding > 0 and self._heard == self._heard_at_check
        self._heard_at_check = self._heard
        self._silent_checks = self._silent_checks + 1 if quiet else 0
        if self._silent_checks >= 2:
            _log.warning("no heartbeat from the consumer, asking anew", action="pull_deaf", durable=self.durable)
            self._deaf = True
            self._reset()
            self._spawn("rebuild", self._rebuild())

    async def _rebuild(self) -> None:
        if self._subscription is not None and not self._stopping:
            await self._subscription.renew()
            self._on_idle()

    # -- what is asked for ---------------------------------------------------------------------------------------------

    def _register(self, batch: int) -> str:
        now = self._now()
        while self._requests:
            oldest = next(iter(self._requests))
            # Fulfilled requests end without a status; those that expire have had theirs by then.
            if self._requests[oldest][1] + self._expires + self._heartbeat > now:
                break
            del self._requests[oldest]
        self._number += 1
        token = f"{self._number:x}"
        self._requests[token] = (batch, now)
        self.outstanding += batch
        return token

    def _end(self, token: str, undelivered: int) -> None:
        if self._requests.pop(token, None) is not None:
            self.outstanding = max(0, self.outstanding - undelivered)

    def _reset(self) -> None:
        self.rebuilt += 1
        self.outstanding = 0
        self._requests.clear()
        self._silent_checks = 0
        self._refused_until = 0.0

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        earlier = self._timers.pop(name, None)
        if earlier is not None:
            earlier.cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, call)

    def _spawn(self, name: str, work: Coroutine[object, object, object]) -> None:
        """Run a short piece of work that cannot wait longer than the bus does; `stop` waits for it."""
        task = asyncio.get_running_loop().create_task(work, name=f"{name}-{self.durable}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
