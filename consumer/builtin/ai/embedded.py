"""The back end that needs no server: MiniLM embeddings and BM25, an extractive summary, retrieval answers.

Numpy runs in two threads of its own, a batch at a time, so the event loop keeps renewing leases and a cancelled
shard stops within one batch.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from consumer.builtin.ai import minilm
from consumer.builtin.ai.measuring import measured
from consumer.builtin.ai.merge import extractive_text
from consumer.builtin.ai.models import (
    MAX_ANSWER_CHARACTERS,
    AnalyzeInput,
    BackendHealth,
    Finding,
    MergedText,
    Part,
    Shard,
)
from consumer.builtin.ai.ranking import (
    Text,
    best_passages,
    clipped,
    extracts,
    letters_of,
    one_line,
    shard_summary,
    take_apart,
)
from consumer.tracing import inference
from headrace.handlers import NonRetryable, TaskContext

if TYPE_CHECKING:
    from consumer.builtin.ai.minilm import Encoder, Floats, Tokens

T = TypeVar("T")

KNOWN_ENOUGH = 0.6
"""A text of which the model knows a smaller share of tokens gets no embedding: it would only be noise."""
_SIMILARITY_WEIGHT = 0.6
"""Of the similarity in a passage's score, where the model knows all of both texts; the rest is BM25."""
_WEAK = 0.15
"""Below this score nothing is called an answer …"""
_WEAK_LEXICAL = 0.03
"""… and below this one where only character n-grams are compared: few of a question's are in its answer."""
_READABLE_SHARD = 0.25
"""A shard of which the model can read a smaller share of sentences is left to BM25 altogether."""
_THREADS = 2
_CACHED_QUESTIONS = 256  # 1.5 kB each: the questions of a document come again with each of its shards


@dataclass
class _Work:
    """One shard on its way through the model."""

    text: Text
    tokens: list[Tokens]
    """Of every sentence."""
    chosen: list[int]
    """The sentences to embed."""
    vectors: dict[int, Floats] = field(default_factory=dict)


class EmbeddedBackend:
    """See the module. The model is loaded by the first shard of the process."""

    name = "embedded"
    model = minilm.MODEL

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="ai-embedded")
        self._questions_lock = threading.Lock()
        self._questions: dict[str, Floats | None] = {}

    def ensure_available(self) -> None:
        """Raise NonRetryable, naming the line that installs the model, if its wheel is missing."""
        minilm.model_folder()

    async def analyze_shard(self, ctx: TaskContext, shard: Shard) -> Part:
        """Embed the shard's sentences, rank its passages, extract its most central sentences."""
        with measured(self.name):
            work = await self._run(lambda: _prepare(minilm.encoder(), shard))
            questions = await self._run(lambda: self._question_vectors(shard.questions))
            with inference("embeddings", self.model, self.name):
                await self._embed(ctx, work)
            part = await self._run(lambda: _part_of(work, questions))
        for extract in part.extracts:
            await ctx.output(extract.text + "\n")
        ctx.count("ai_embedded_sentences", part.embedded_sentences)
        await ctx.progress(1.0, f"{part.sentences} sentences, {part.embedded_sentences} embedded")
        return part

    async def merge(self, ctx: TaskContext, input: AnalyzeInput, parts: list[Part]) -> MergedText:
        """Choose among what the shards extracted; no model is needed."""
        merged = await self._run(lambda: extractive_text(input, parts))
        await ctx.output(merged.summary)
        return merged

    async def health(self) -> BackendHealth:
        """Load the model if need be, and embed one short sentence."""
        try:
            seconds = await self._run(_one_short_embedding)
        except (NonRetryable, OSError, ValueError, ImportError, KeyError) as error:
            return BackendHealth(backend=self.name, model=self.model, models=[], latency_ms=None, error=str(error))
        latency = round(seconds * 1000, 1)
        return BackendHealth(backend=self.name, model=self.model, models=[self.model], latency_ms=latency, error=None)

    async def close(self) -> None:
        """End the threads after the batches under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _embed(self, ctx: TaskContext, work: _Work) -> None:
        chosen = [work.tokens[index] for index in work.chosen]
        done = 0
        for batch in minilm.batches(chosen):
            vectors = await self._run(functools.partial(minilm.encoder().encode, [chosen[i] for i in batch]))
            work.vectors.update({work.chosen[i]: vectors[row] for row, i in enumerate(batch)})
            done += len(batch)
            await ctx.progress(0.95 * done / len(chosen), f"{done} of {len(chosen)} sentences embedded")

    def _question_vectors(self, questions: Sequence[str]) -> list[Floats | None]:
        """Embeddings scaled by the share of known tokens; None for a question that the model cannot read."""
        with self._questions_lock:
            return self._cached_vectors(minilm.encoder(), questions)

    def _cached_vectors(self, encoder: Encoder, questions: Sequence[str]) -> list[Floats | None]:
        missing = [question for question in dict.fromkeys(questions) if question not in self._questions]
        tokens = encoder.tokenize(missing)
        for batch in minilm.batches(tokens):
            vectors = encoder.encode([tokens[i] for i in batch])
            for row, i in enumerate(batch):
                known = 1 - tokens[i].unknown
                self._questions[missing[i]] = vectors[row] * known if known >= KNOWN_ENOUGH else None
        found = [self._questions[question] for question in questions]
        while len(self._questions) > _CACHED_QUESTIONS:
            del self._questions[next(iter(self._questions))]
        return found


def _prepare(encoder: Encoder, shard: Shard) -> _Work:
    text = take_apart(shard)
    tokens = encoder.tokenize([text.sentence_text(index) for index in range(len(text.sentences))])
    return _Work(text, tokens, _within_budget(text, tokens))


def _within_budget(text: Text, tokens: list[Tokens]) -> list[int]:
    """The sentences to embed: all that the model can read, or those most likely to matter."""
    readable = [i for i, found in enumerate(tokens) if text.sentence_terms[i] and found.unknown <= 1 - KNOWN_ENOUGH]
    if len(readable) < _READABLE_SHARD * len(tokens):
        return []
    budget = text.shard.embedding_tokens
    if sum(len(tokens[index].ids) for index in readable) <= budget:
        return readable
    allowed, chosen = set(readable), dict[int, None]()
    for index in _by_promise(text):
        if index in allowed and index not in chosen:
            budget -= len(tokens[index].ids)
            if budget < 0:
                break
            chosen[index] = None
    return sorted(chosen)


def _by_promise(text: Text) -> Iterator[int]:
    """Sentences by turns: the most central, then one of the best passage of each question, and so on."""
    orders = [sorted(range(len(text.sentences)), key=lambda index: -text.centrality[index])]
    for question in range(len(text.questions)):
        scores = text.lexical_scores(question)
        ranked = sorted((p for p in range(len(scores)) if scores[p] > 0), key=lambda p: -scores[p])
        orders.append([index for passage in ranked for index in text.passages[passage]])
    for turn in range(len(text.sentences)):
        for order in orders:
            if turn < len(order):
                yield order[turn]


def _part_of(work: _Work, questions: Sequence[Floats | None]) -> Part:
    text, shard = work.text, work.text.shard
    found = extracts(text, _importance(work))
    letters = letters_of(shard.text)
    similar = bool(work.vectors)
    return Part(
        shard=shard.index,
        start=shard.start,
        end=shard.start + len(shard.text),
        summary=shard_summary(found),
        key_points=[],
        extracts=found,
        findings=[_finding(work, number, vector) for number, vector in enumerate(questions)],
        letters=letters,
        sentences=len(text.sentences),
        embedded_sentences=len(work.vectors),
        backend=EmbeddedBackend.name,
        model=EmbeddedBackend.model,
        scoring=("minilm+" if similar else "") + ("bm25-cjk" if letters.cjk > letters.other else "bm25"),
    )


def _importance(work: _Work) -> Callable[[int], float]:
    """A sentence's weight for the summary: half its terms, half its nearness to the centre of the embedded."""
    central = work.text.centrality
    if not work.vectors:
        return lambda index: central[index]
    vectors = list(work.vectors.values())
    total = functools.reduce(lambda first, second: first + second, vectors)
    length = float((total @ total) ** 0.5) or 1.0

    def weight(index: int) -> float:
        vector = work.vectors.get(index)
        near = central[index] if vector is None else max(0.0, float(vector @ total) / length)
        return (central[index] + near) / 2

    return weight


def _finding(work: _Work, question: int, vector: Floats | None) -> Finding:
    text = work.text
    near = {i: _similarity(work, i, vector) for i in range(len(text.sentences))}
    lexical_scores = text.lexical_scores(question)
    scores = [
        _score(lexical_scores[number], max(near[index] for index in passage), vector is not None)
        for number, passage in enumerate(text.passages)
    ]
    best = best_passages(text, scores)
    weak = _WEAK_LEXICAL if vector is None else _WEAK
    answers = bool(best) and scores[best[0]] >= weak
    answer = _answer(text, question, text.passages[best[0]], near) if answers else None
    return Finding(answer=answer, passages=[text.passage(index, scores[index]) for index in best])


def _score(lexical_score: float, similarity: float, readable: bool) -> float:
    if not readable:
        return lexical_score
    return (1 - _SIMILARITY_WEIGHT) * lexical_score + _SIMILARITY_WEIGHT * similarity


def _similarity(work: _Work, index: int, vector: Floats | None) -> float:
    own = work.vectors.get(index)
    if own is None or vector is None:
        return 0.0
    return max(0.0, float(own @ vector)) * (1 - work.tokens[index].unknown)


def _answer(text: Text, question: int, passage: list[int], near: dict[int, float]) -> str | None:
    """The passage's best sentence that is no heading."""
    wanted = set(text.questions[question])
    candidates = [index for index in passage if not text.sentences[index].heading] or passage

    def score(index: int) -> float:
        common = len(wanted.intersection(text.sentence_terms[index])) / len(wanted) if wanted else 0.0
        return common + near[index]

    best = max(candidates, key=lambda index: (score(index), -index))
    return clipped(one_line(text.sentence_text(best)), MAX_ANSWER_CHARACTERS)


def _one_short_embedding() -> float:
    encoder = minilm.encoder()
    began = time.perf_counter()
    encoder.encode(encoder.tokenize(["Is the model awake?"]))
    return time.perf_counter() - began
