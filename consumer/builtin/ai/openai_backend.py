"""The back end for any server that speaks the chat completions API, through the official client.

The client retries nothing: attempts, their budget and their backoff are the task's. What streams in is passed on as
output at once. A 429 holds back every call of this process until the server's time has come.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from consumer.builtin.ai.backend import InferenceError
from consumer.builtin.ai.measuring import count_usage, measured
from consumer.builtin.ai.models import (
    MAX_ANSWER_CHARACTERS,
    MAX_KEY_POINT_CHARACTERS,
    MAX_KEY_POINTS,
    MAX_SHARD_SUMMARY_CHARACTERS,
    AnalyzeInput,
    BackendHealth,
    Finding,
    MergedText,
    Part,
    Shard,
)
from consumer.builtin.ai.prompts import ModelAnswer, ModelReply, merge_messages, read_reply, shard_messages
from consumer.builtin.ai.ranking import Text, best_passages, clipped, letters_of, one_line, take_apart
from consumer.builtin.ai.settings import AISettings
from consumer.tracing import inference
from headrace.handlers import NonRetryable, RetryAfter, TaskContext

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from consumer.builtin.ai.prompts import Messages

MAX_REPLY_CHARACTERS = 65_536
"""A model that runs on is cut off here."""
MAX_CONCURRENT = 8
"""Requests of this process under way at once; the others wait for their turn."""
LONGEST_WAIT = 30.0
"""Seconds. A throttle that ends sooner is sat out, so that it costs no attempt; a longer one becomes a RetryAfter."""
_HEALTH_WITHIN_SECONDS = 5.0
_MODELS_LISTED = 100


class OpenAIBackend:
    """See the module. One instance belongs to one event loop."""

    name = "openai"

    def __init__(self, settings: AISettings) -> None:
        self._settings = settings
        self.model = settings.model
        self._opened: AsyncOpenAI | None = None
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._closed_until = 0.0  # monotonic

    def ensure_available(self) -> None:
        """Nothing to check without asking the server; its refusals come with the first shard."""

    async def analyze_shard(self, ctx: TaskContext, shard: Shard) -> Part:
        """One streamed completion."""
        text = await asyncio.to_thread(take_apart, shard)
        reply = await self._ask(ctx, shard_messages(shard))
        return await asyncio.to_thread(_part_of, text, reply, self.model)

    async def merge(self, ctx: TaskContext, input: AnalyzeInput, parts: list[Part]) -> MergedText:
        """One streamed completion over the notes of all parts."""
        reply = await self._ask(ctx, merge_messages(input, parts))
        questions = range(len(input.questions))
        return MergedText(
            summary=reply.summary,
            key_points=_points(reply),
            answers=[_clipped_answer(reply.answer_to(number)) for number in questions],
        )

    async def health(self) -> BackendHealth:
        """List the server's models, within 5 s; a configured model that is not among them is an error."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(_HEALTH_WITHIN_SECONDS), self._translating():
                client = await self._client()
                page = await client.models.list(timeout=_HEALTH_WITHIN_SECONDS)
        except (NonRetryable, RetryAfter, InferenceError) as error:
            return self._health(None, [], str(error))
        except TimeoutError:
            return self._health(None, [], f"no answer from {self._settings.base_url} in 5 s")
        names = [model.id for model in page.data]
        missing = f"{self._settings.base_url} does not offer the model {self.model!r}"
        latency = round((time.monotonic() - began) * 1000, 1)
        return self._health(latency, names[:_MODELS_LISTED], None if self.model in names else missing)

    async def close(self) -> None:
        """Close the connections to the server."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    def _health(self, latency: float | None, models: list[str], error: str | None) -> BackendHealth:
        return BackendHealth(backend=self.name, model=self.model, models=models, latency_ms=latency, error=error)

    async def _client(self) -> AsyncOpenAI:
        # Half a second of imports: in a thread, or every lease of the process would wait for them.
        openai = await asyncio.to_thread(importlib.import_module, "openai")
        if self._opened is None:
            settings = self._settings
            self._opened = openai.AsyncOpenAI(
                base_url=settings.base_url,
                # The client insists on a key; servers that check none do not mind this one.
                api_key=settings.api_key.get_secret_value() or "none",
                timeout=settings.timeout_seconds,
                max_retries=0,
            )
        return self._opened

    async def _ask(self, ctx: TaskContext, messages: Messages) -> ModelReply:
        async with self._slots:
            await self._sit_out_throttle()
            await ctx.progress(0.05, "asked the model")
            try:
                with (
                    measured(self.name),
                    inference("chat", self.model, self.name, self._settings.base_url) as headers,
                ):
                    async with asyncio.timeout(self._settings.timeout_seconds), self._translating():
                        text = await self._completion(ctx, messages, headers)
            except TimeoutError as error:
                limit = self._settings.timeout_seconds
                raise InferenceError(
                    f"{self._settings.base_url} did not finish its answer within {limit:g} s"
                ) from error
        ctx.count("ai_requests")
        ctx.count("ai_reply_characters", len(text))
        return read_reply(text)

    async def _completion(self, ctx: TaskContext, messages: Messages, headers: Mapping[str, str] | None) -> str:
        client = await self._client()
        ask: Any = client.chat.completions.create  # the messages' declared type is a union of a dozen classes
        pieces: list[str] = []
        length, finished, usage = 0, None, None
        extra = {"stream_options": {"include_usage": True}} if self._settings.count_tokens else {}
        asked = ask(model=self.model, messages=messages, stream=True, extra_headers=headers, **extra)
        async with await asked as stream:
            async for chunk in stream:
                usage = chunk.usage or usage
                choice = chunk.choices[0] if chunk.choices else None
                finished = (choice.finish_reason if choice else None) or finished
                piece = (choice.delta.content if choice and choice.delta else None) or ""
                if piece:
                    pieces.append(piece)
                    length += len(piece)
                    await ctx.output(piece)
                    await ctx.progress(0.05 + 0.9 * length / (length + 2_000), f"{length} characters")
                if length > MAX_REPLY_CHARACTERS:
                    raise InferenceError(f"the model's answer passed {MAX_REPLY_CHARACTERS} characters; cut off")
        count_usage(usage, self._settings)
        _check_finish(finished, length)
        return "".join(pieces)

    @asynccontextmanager
    async def _translating(self) -> AsyncIterator[None]:
        openai = await asyncio.to_thread(importlib.import_module, "openai")
        try:
            yield
        except openai.OpenAIError as error:
            from consumer.builtin.ai.openai_errors import translated  # noqa: PLC0415  (imports openai)

            meaning = translated(error, self._settings)
            if isinstance(meaning, RetryAfter):
                self._closed_until = max(self._closed_until, time.monotonic() + meaning.delay.total_seconds())
            raise meaning from error

    async def _sit_out_throttle(self) -> None:
        while (left := self._closed_until - time.monotonic()) > 0:
            if left > LONGEST_WAIT:
                raise RetryAfter(f"{self._settings.base_url} throttles", timedelta(seconds=left))
            await asyncio.sleep(left)


def _check_finish(reason: str | None, length: int) -> None:
    if reason is None:  # without chunked encoding a cut connection looks like the end of the stream
        raise InferenceError(f"the model's answer was cut after {length} characters")
    if reason == "length":
        raise InferenceError(f"the model's answer hit the server's length limit after {length} characters")
    if reason == "content_filter":
        raise NonRetryable("the server's content filter stopped the answer", reason="CONTENT_FILTER")


def _part_of(text: Text, reply: ModelReply, model: str) -> Part:
    shard = text.shard
    letters = letters_of(shard.text)
    return Part(
        shard=shard.index,
        start=shard.start,
        end=shard.start + len(shard.text),
        summary=clipped(reply.summary, MAX_SHARD_SUMMARY_CHARACTERS),
        key_points=_points(reply),
        extracts=[],
        findings=[_finding(text, number, reply.answer_to(number)) for number in range(len(text.questions))],
        letters=letters,
        sentences=len(text.sentences),
        embedded_sentences=0,
        backend=OpenAIBackend.name,
        model=model,
        scoring="model+bm25-cjk" if letters.cjk > letters.other else "model+bm25",
    )


def _points(reply: ModelReply) -> list[str]:
    return [clipped(one_line(point), MAX_KEY_POINT_CHARACTERS) for point in reply.key_points[:MAX_KEY_POINTS]]


def _finding(text: Text, question: int, answer: ModelAnswer) -> Finding:
    """Passages by BM25, those that the model quotes before all others."""
    quotes = [quote for quote in map(one_line, answer.quotes[:8]) if len(quote) >= 4]
    scores = [
        0.5 * score + (0.5 if _quoted(text, passage, quotes) else 0.0)
        for passage, score in zip(text.passages, text.lexical_scores(question), strict=True)
    ]
    passages = [text.passage(index, scores[index]) for index in best_passages(text, scores)]
    return Finding(answer=_clipped_answer(answer), passages=passages)


def _quoted(text: Text, passage: list[int], quotes: list[str]) -> bool:
    """Whether a quote overlaps the passage: it holds the quote, or the quote holds one of its sentences."""
    whole = one_line(" ".join(text.sentence_text(index) for index in passage))
    sentences = [one_line(text.sentence_text(index)) for index in passage]
    return any(
        quote in whole or any(len(sentence) >= 12 and sentence in quote for sentence in sentences) for quote in quotes
    )


def _clipped_answer(answer: ModelAnswer) -> str | None:
    said = one_line(answer.answer or "")
    return clipped(said, MAX_ANSWER_CHARACTERS) or None
