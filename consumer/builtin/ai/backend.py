"""The interface that both back ends of `ai.analyze` implement, and the choice between them."""

from __future__ import annotations

import functools
from typing import Protocol

from consumer.builtin.ai.models import AnalyzeInput, BackendHealth, MergedText, Part, Shard
from consumer.builtin.ai.settings import AISettings
from headrace.handlers import TaskContext


class Backend(Protocol):
    """What analyses shards. One instance per process; its methods may run concurrently."""

    name: str
    model: str

    def ensure_available(self) -> None:
        """Raise NonRetryable, saying what to do, if no shard can succeed in this process. Cheap, no I/O waits."""

    async def analyze_shard(self, ctx: TaskContext, shard: Shard) -> Part:
        """One inference over one shard, with progress and partial output.

        Raises:
            NonRetryable: repeating cannot help (the model is not installed, the key is refused, …).
            RetryAfter: the server throttles.
            InferenceError: anything that may pass by itself.
        """

    async def merge(self, ctx: TaskContext, input: AnalyzeInput, parts: list[Part]) -> MergedText:
        """Write summary, key points and answers from the parts, at least one. Raises as `analyze_shard` does."""

    async def health(self) -> BackendHealth:
        """Ask the back end for a sign of life. Never raises for a failing one: the error is in the answer."""

    async def close(self) -> None:
        """Let go of connections and threads. Shards under way fail."""


class InferenceError(RuntimeError):
    """An inference failed in a way that may pass by itself: an outage, a cut stream, an unusable answer."""


def backend_of(settings: AISettings) -> Backend:
    """A new back end for these settings."""
    # Imported here: the openai back end of a process is never loaded where the embedded one is used.
    if settings.backend == "openai":
        from consumer.builtin.ai.openai_backend import OpenAIBackend  # noqa: PLC0415

        return OpenAIBackend(settings)
    from consumer.builtin.ai.embedded import EmbeddedBackend  # noqa: PLC0415

    return EmbeddedBackend()


@functools.lru_cache(maxsize=1)
def process_backend() -> Backend:
    """The process's back end, by its environment at the first call.

    Raises:
        pydantic.ValidationError: see `AISettings`.
    """
    return backend_of(AISettings())
