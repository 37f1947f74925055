"""The clients: each writes what it asked and what it was told into a history of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import grpc

from headrace import Client, errors
from headrace.rpc import Connection
from headrace.v1 import event_pb2, producer_pb2, producer_pb2_grpc, task_pb2
from headrace.watch import TERMINAL, is_terminal
from tests.faults.recording import History
from tests.faults.workload.intentions import Intention

CALL_SECONDS = 4.0
SILENCE_SECONDS = 10.0
RECONNECT_SECONDS = 60.0
NO_ANSWER = (errors.UnavailableError,)
UNKNOWN_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, None)


class FaultsClient:
    """One client: the SDK, and for single submits the bare call, which also tells whether a task is new."""

    def __init__(self, name: str, folder: Path, producer: str, status: str) -> None:
        self.history = History(folder, name)
        self.sdk = Client(
            producer,
            status,
            timeout=CALL_SECONDS,
            silence_timeout=SILENCE_SECONDS,
            reconnect_timeout=RECONNECT_SECONDS,
        )
        self._producer = Connection("producer", producer)
        self._watches = 0
        self._name = name

    async def close(self) -> None:
        """End all calls and close the history."""
        await asyncio.gather(self.sdk.close(), self._producer.close())
        self.history.close()

    async def submit(self, intention: Intention, request: producer_pb2.SubmitTaskRequest) -> str | None:
        """Submit once; return the id, or None where the answer was no or none at all."""
        self._note_sent(intention)
        stub: producer_pb2_grpc.ProducerServiceAsyncStub = self._producer.stub(producer_pb2_grpc.ProducerServiceStub)
        try:
            answer = await self._producer.ask(stub.SubmitTask, request, CALL_SECONDS)
        except errors.HeadraceError as error:
            self._note_refusal(intention.key, error)
            return None
        self.history.note("submit_ok", key=intention.key, id=answer.task.id, created=answer.created)
        return answer.task.id

    async def submit_many(
        self, intentions: Sequence[Intention], requests: Sequence[producer_pb2.SubmitTaskRequest]
    ) -> list[str | None]:
        """Submit a batch with the SDK, which repeats what is not answered; ids in order, None as in `submit`."""
        for intention in intentions:
            self._note_sent(intention)
        outcomes = await self.sdk.submit_many(requests, return_errors=True, timeout=CALL_SECONDS)
        ids: list[str | None] = []
        for intention, outcome in zip(intentions, outcomes, strict=True):
            if isinstance(outcome, errors.HeadraceError):
                self._note_refusal(intention.key, outcome)
                ids.append(None)
            else:
                self.history.note("submit_ok", key=intention.key, id=outcome.id, created=None)
                ids.append(outcome.id)
        return ids

    async def cancel(self, task_id: str) -> None:
        """Cancel a task."""
        self.history.note("cancel_sent", id=task_id)
        try:
            task = await self.sdk.cancel(task_id)
        except errors.HeadraceError as error:
            self.history.note("cancel_failed", id=task_id, code=code_of(error))
        else:
            self.history.note("cancel_ok", id=task_id, state=state_name(task.state))

    async def redrive(self, task_id: str, payload: dict[str, object] | None) -> None:
        """Redrive a failed task, perhaps with another payload."""
        self.history.note("redrive_sent", id=task_id)
        try:
            await self.sdk.dead_letters.redrive([task_id], payload=payload)
        except errors.HeadraceError as error:
            self.history.note("redrive_failed", id=task_id, code=code_of(error))
        else:
            self.history.note("redrive_ok", id=task_id)

    async def get(self, task_id: str) -> task_pb2.Task | None:
        """Read a task; None where nobody answers."""
        try:
            task = await self.sdk.get(task_id)
        except errors.HeadraceError:
            return None
        state = state_name(task.state)
        self.history.note("got", id=task_id, state=state, sequence=task.sequence, generation=task.generation)
        return task

    async def watch(self, task_id: str, *, leave_after: int = 0) -> None:
        """Watch a task to its end, or leave after so many events and resume where it was left."""
        sequence = await self._watch_once(task_id, None, leave_after)
        if sequence is not None:
            await self._watch_once(task_id, sequence, 0)

    async def _watch_once(self, task_id: str, after: int | None, leave_after: int) -> int | None:
        """One watch; returns the last sequence if it left early, None if it ended."""
        self._watches += 1
        watch = f"{self._name}/{self._watches}"
        self.history.note("watch_opened", watch=watch, id=task_id, after=after)
        seen, terminal, sequence = 0, False, after
        try:
            async with aclosing(self.sdk.watch(task_id, after)) as events:
                async for event in events:
                    self.note_event(watch, event, sequence)
                    seen, terminal, sequence = seen + 1, is_terminal(event), event.sequence
                    if seen == leave_after and not terminal:
                        self.history.note("watch_ended", watch=watch, id=task_id, terminal=False, code="LEFT")
                        return sequence
        except errors.HeadraceError as error:
            self.history.note("watch_ended", watch=watch, id=task_id, terminal=terminal, code=code_of(error))
        except asyncio.CancelledError:
            self.history.note("watch_ended", watch=watch, id=task_id, terminal=terminal, code="GIVEN_UP")
            raise
        else:
            self.history.note("watch_ended", watch=watch, id=task_id, terminal=terminal, code="OK")
        return None

    def note_event(self, watch: str, event: event_pb2.TaskEvent, before: int | None) -> None:
        """Note what a watch was shown; `before` is the sequence that it was at."""
        about = {"watch": watch, "id": event.task_id, "sequence": event.sequence, "generation": event.generation}
        kind = event.WhichOneof("event")
        if kind == "gap":
            since = event.gap.after_sequence if before is None else before
            self.history.note(
                "watch_gap",
                watch=watch,
                id=event.task_id,
                cause=event.gap.cause,
                **{"from": since, "to": event.sequence},
            )
        elif kind == "snapshot":
            self.history.note("watch_snapshot", **about, state=state_name(event.snapshot.state))
        else:
            change = event.state_change
            state = state_name(change.state) if kind == "state_change" else None
            self.history.note("watch_event", **about, type=kind, state=state, terminal=is_terminal(event))

    def _note_sent(self, intention: Intention) -> None:
        wanted = intention.wanted
        self.history.note("submit_sent", key=intention.key, kind=intention.kind, queue="faults", wanted=wanted)

    def _note_refusal(self, key: str, error: errors.HeadraceError) -> None:
        if isinstance(error, NO_ANSWER) or error.code in UNKNOWN_CODES:
            self.history.note("submit_unknown", key=key, code=code_of(error))
        else:
            self.history.note("submit_refused", key=key, code=code_of(error), reason=error.reason)


def code_of(error: errors.HeadraceError) -> str:
    """The name of the gRPC status, or of the class where there was none."""
    return error.code.name if error.code else type(error).__name__


def state_name(state: task_pb2.TaskState.ValueType) -> str:
    """COMPLETED for TASK_STATE_COMPLETED."""
    return task_pb2.TaskState.Name(state).removeprefix("TASK_STATE_")


def is_ended(task: task_pb2.Task | None) -> bool:
    """Whether a task was read and has ended."""
    return task is not None and task.state in TERMINAL
