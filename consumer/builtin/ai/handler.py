"""The kind `ai.analyze`: plan a document into shards, analyse each, merge. What a shard does is the back end's."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError

from consumer.builtin.ai.backend import Backend, process_backend
from consumer.builtin.ai.lexical import corpus_of
from consumer.builtin.ai.merge import nothing_written, result_of
from consumer.builtin.ai.models import AnalyzeInput, Part, Shard
from consumer.builtin.ai.ranking import passage_texts
from consumer.builtin.ai.split import split_shards
from headrace.handlers import NonRetryable, ShardedHandler, TaskContext

EMBEDDING_TOKENS = 8_000
"""For one document: 4 s on one core. About 35 kB of English is embedded whole; of more, the likely parts."""


class Analyze(ShardedHandler):
    """Summary, key points and answers with their passages, for a document in any language."""

    kind = "ai.analyze"

    def __init__(self, backend: Backend | None = None) -> None:
        """`backend`: None takes the one of the process, by its environment, when it is first needed."""
        self._given = backend

    async def plan(self, ctx: TaskContext, input: AnalyzeInput) -> list[dict[str, Any]]:
        """At most 64 shards; none for a document of nothing but white space.

        Raises:
            NonRetryable: the settings are wrong, or the back end's model is not installed.
        """
        self._backend().ensure_available()
        shards = await asyncio.to_thread(plan_shards, input)
        await ctx.progress(1.0, f"{len(shards)} shards")
        return [shard.model_dump(mode="json") for shard in shards]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> dict[str, Any]:
        """One inference."""
        part = await self._backend().analyze_shard(ctx, Shard.model_validate(shard))
        return part.model_dump(mode="json")

    async def merge(self, ctx: TaskContext, input: AnalyzeInput, parts: list[Any]) -> dict[str, Any]:
        """The result, below 1 MiB."""
        backend = self._backend()
        found = [Part.model_validate(part) for part in parts]
        written = await backend.merge(ctx, input, found) if found else nothing_written(input)
        result = await asyncio.to_thread(result_of, input, found, written, backend.name, backend.model)
        return result.model_dump(mode="json")

    def _backend(self) -> Backend:
        if self._given is not None:
            return self._given
        try:
            return process_backend()
        except ValidationError as error:
            problems = "; ".join(problem["msg"] for problem in error.errors(include_input=False))
            raise NonRetryable(f"the HEADRACE_AI_ settings are wrong: {problems}", reason="AI_SETTINGS") from error


def plan_shards(input: AnalyzeInput) -> list[Shard]:
    """Cut the document and count its terms. Under a second for 1 MiB of prose; blocking."""
    spans = split_shards(input.document)
    texts = [input.document[span.start : span.end] for span in spans]
    corpus = corpus_of((passage for text in texts for passage in passage_texts(text)), input.questions)
    return [
        Shard(
            index=index,
            count=len(spans),
            start=span.start,
            text=texts[index],
            questions=input.questions,
            instructions=input.instructions,
            corpus=corpus,
            embedding_tokens=EMBEDDING_TOKENS // len(spans),
        )
        for index, span in enumerate(spans)
    ]
