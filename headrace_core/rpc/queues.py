"""Queues as protos: the producer answers with them, the status service shows them."""

from google.protobuf.duration_pb2 import Duration

from headrace.v1 import queue_pb2
from headrace_core.rpc.convert import timestamp
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.queues import QueueFigures


def queue_message(figures: QueueFigures) -> queue_pb2.Queue:
    """A queue and its figures."""
    return queue_pb2.Queue(
        name=figures.settings.name,
        paused=figures.paused_at is not None,
        backlog=figures.backlog,
        delayed=figures.delayed,
        in_flight=figures.in_flight,
        dead_letters=figures.dead_letters,
        oldest_age=duration(figures.oldest_age),
        submit_rate=figures.submit_rate,
        finish_rate=figures.finish_rate,
        limits=_limits(figures.settings),
        pause_time=timestamp(figures.paused_at),
    )


def _limits(settings: QueueSettings) -> queue_pb2.QueueLimits:
    return queue_pb2.QueueLimits(
        max_attempts=settings.max_attempts,
        max_crashes=settings.max_crashes,
        max_backlog=settings.max_backlog,
        max_dead_letters=settings.max_dead_letters,
        max_concurrency=settings.max_concurrency,
        rate_limit=settings.rate_limit,
        max_batch_size=settings.max_batch_size,
        max_batch_timeout=duration(settings.max_batch_timeout),
        ack_wait=duration(settings.ack_wait),
    )


def duration(seconds: float) -> Duration:
    """Seconds, to the microsecond."""
    found = Duration()
    found.FromNanoseconds(round(seconds * 1e6) * 1000)
    return found
