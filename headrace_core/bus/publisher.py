"""Publishing into streams, fast and with an answer for every message.

nats-py's `publish_async` never resolves on an error and its `publish` waits message by message. Here a window of
messages goes out at once over core NATS, each with a reply subject of its own under one shared inbox; the answers
are matched by the last token of that subject.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from headrace_core.bus.connection import Bus
from headrace_core.bus.errors import STREAM_FULL, BusUnavailable, RequestRefused
from headrace_core.bus.subscription import Subscription
from headrace_core.bus.wire import Incoming
from headrace_core.telemetry import logs

WINDOW = 300
WINDOW_SECONDS = 2.0
MESSAGE_ID = "Nats-Msg-Id"
NO_RESPONDERS = "503"
_STORED = re.compile(rb'\{"stream":"[\w-]+", ?"seq":(\d+)\}')

_log = logs.get("headrace.bus")


class OutgoingMessage(NamedTuple):
    """A message for a stream. `message_id` lets the stream recognise a repetition within its duplicate window."""

    subject: str
    body: bytes
    message_id: str | None = None
    headers: Mapping[str, str] | None = None


class PublishOutcome(StrEnum):
    """What became of a message."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # its id was seen before; that does not prove that the message is in the stream now
    FULL = "full"  # the stream or the subject is at its limit; nothing stored, the id is not used up
    MISSING = "missing"  # no stream takes this subject, or there is no JetStream
    REJECTED = "rejected"  # never acceptable as it is: too large, a bad subject, a refusal of the stream
    UNAVAILABLE = "unavailable"  # no connection, or no answer in time: perhaps stored, so repeat with the same id


class PublishResult(NamedTuple):
    """The answer for one message; `reason` is for people and empty on success, `sequence` the stream's number."""

    outcome: PublishOutcome
    sequence: int = 0
    reason: str = ""
    err_code: int = 0

    @property
    def accepted(self) -> bool:
        """The stream took it, now or before."""
        return self.outcome in (PublishOutcome.STORED, PublishOutcome.DUPLICATE)


class _Window:
    """The answers of one window, filled in any order."""

    def __init__(self, size: int) -> None:
        self.results: list[PublishResult | None] = [None] * size
        self.missing = size
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, index: int, result: PublishResult) -> None:
        if self.results[index] is not None:
            return
        self.results[index] = result
        self.missing -= 1
        if self.missing == 0:
            self.finish()

    def finish(self) -> None:
        if not self.complete.done():
            self.complete.set_result(None)

    def settled(self, reason: str) -> list[PublishResult]:
        """Return all results; what has not been answered is unavailable for `reason`."""
        unknown = PublishResult(PublishOutcome.UNAVAILABLE, reason=reason)
        return [unknown if result is None else result for result in self.results]


class Publisher:
    """Publishes batches into streams. Any number of `publish` calls may run at once; they share one inbox."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._inbox = bus.new_inbox()
        self._tokens = itertools.count()
        self._waiting: dict[str, tuple[_Window, int]] = {}
        self._subscription: Subscription | None = None
        self._forget_state = bus.on_state_change(self._on_state_change)

    async def publish(self, messages: Sequence[OutgoingMessage]) -> list[PublishResult]:
        """Publish and return one result for each message, in the same order. Never raises for the bus.

        Each window of 300 takes 2 s at most; after one that was not answered in full the rest is not tried.
        """
        results: list[PublishResult] = []
        while len(results) < len(messages):
            done = len(results)
            window = await self._publish_window(messages[done : done + WINDOW])
            results += window
            if any(result.outcome is PublishOutcome.UNAVAILABLE for result in window):
                rest = PublishResult(PublishOutcome.UNAVAILABLE, reason="not tried, an earlier window failed")
                results += [rest] * (len(messages) - len(results))
        return results

    async def close(self) -> None:
        """Stop listening for answers; what is being published ends as unavailable. Idempotent."""
        self._forget_state()
        self._finish_all()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    async def _publish_window(self, messages: Sequence[OutgoingMessage]) -> list[PublishResult]:
        if not self._bus.connected:
            return _Window(len(messages)).settled(f"not connected: {self._bus.problem}")
        if self._subscription is None:
            # Assigned before the await: concurrent calls must not make a second one. Commands keep their
            # order on the wire, so their messages are published after this SUB.
            self._subscription = Subscription(self._bus, f"{self._inbox}.*", self._on_answer)
            await self._subscription.start()
        window = _Window(len(messages))
        tokens: list[str] = []
        try:
            reason = await self._send(messages, window, tokens)
            if not reason:
                reason = await self._answered(window)
        finally:
            for token in tokens:
                self._waiting.pop(token, None)
        if tokens and window.missing == len(messages) and self._bus.connected:
            await self._hear_again()
        return window.settled(reason)

    async def _hear_again(self) -> None:
        """Not one answer on a connection that is up: the server may have lost our interest in them."""
        if self._subscription is not None:
            _log.warning(
                "no publication was answered, listening anew", action="publisher_deaf", reason=self._bus.problem
            )
            await self._subscription.renew()

    async def _send(self, messages: Sequence[OutgoingMessage], window: _Window, tokens: list[str]) -> str:
        """Send the window; return why it broke off, or an empty string."""
        commands: list[bytes] = []
        for index, message in enumerate(messages):
            token = f"{next(self._tokens):x}"
            reply = f"{self._inbox}.{token}"
            try:
                commands.append(self._bus.command(message.subject, message.body, reply, _headers(message)))
            except RequestRefused as error:
                window.put(index, PublishResult(PublishOutcome.REJECTED, reason=error.message))
                continue
            tokens.append(token)
            self._waiting[token] = (window, index)
        try:
            await self._bus.send_commands(commands)
        except BusUnavailable as error:
            return error.message
        return ""

    async def _answered(self, window: _Window) -> str:
        """Wait for the answers; return why some may be missing."""
        try:
            async with asyncio.timeout(WINDOW_SECONDS):
                await window.complete
        except TimeoutError:
            return self._bus.denied or f"no answer within {WINDOW_SECONDS:g} s, perhaps stored"
        return "the connection was lost, perhaps stored"

    def _on_answer(self, message: Incoming) -> None:
        place = self._waiting.pop(message.subject[len(self._inbox) + 1 :], None)
        if place is not None:  # else an answer after its window's time
            window, index = place
            window.put(index, _result(message))

    def _on_state_change(self, connected: bool) -> None:
        if not connected:
            self._finish_all()

    def _finish_all(self) -> None:
        for window, _ in list(self._waiting.values()):
            window.finish()


def _headers(message: OutgoingMessage) -> Mapping[str, str] | None:
    if message.message_id is None:
        return message.headers
    return {MESSAGE_ID: message.message_id, **(message.headers or {})}


def _result(message: Incoming) -> PublishResult:
    if not message.data:
        if message.headers.get("Status") == NO_RESPONDERS:
            return PublishResult(PublishOutcome.MISSING, reason="no stream takes this subject")
        return PublishResult(PublishOutcome.REJECTED, reason="the answer is empty")
    # {"stream":"HEADRACE_TASKS","seq":7}, as nearly all answers are, is worth a look of its own: a JSON parser takes as
    # long as the rest of a publication.
    if plain := _STORED.fullmatch(message.data):
        return PublishResult(PublishOutcome.STORED, int(plain[1]))
    try:
        answer = json.loads(message.data.decode())
    except ValueError:
        return PublishResult(PublishOutcome.REJECTED, reason=f"the answer is not JSON: {message.data[:80]!r}")
    error = answer.get("error")
    if error is None:
        outcome = PublishOutcome.DUPLICATE if answer.get("duplicate") else PublishOutcome.STORED
        return PublishResult(outcome, sequence=answer["seq"])
    return _refusal(error)


def _refusal(error: Mapping[str, object]) -> PublishResult:
    code, err_code = error.get("code"), error.get("err_code")
    if err_code == STREAM_FULL:
        outcome = PublishOutcome.FULL
    elif code == 503:
        outcome = PublishOutcome.UNAVAILABLE  # no leader, a server that stops, out of resources: it passes
    else:
        outcome = PublishOutcome.REJECTED
    return PublishResult(outcome, reason=str(error.get("description", "")), err_code=int(str(err_code or 0)))
