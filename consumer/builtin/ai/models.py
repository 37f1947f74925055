"""The shapes of `ai.analyze`: what clients send, what travels between plan, shards and merge, what is stored.

Bounds stand here. Together they keep a result below 1 MiB whatever the document:
at most 64 shards, 20 questions, 3 passages for each, every text clipped.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_QUESTIONS = 20
MAX_QUESTION_CHARACTERS = 500
MAX_INSTRUCTIONS_CHARACTERS = 2_000
MAX_DOCUMENT_CHARACTERS = 1_048_576
MAX_SHARDS = 64
PASSAGES_PER_ANSWER = 3
MAX_SUMMARY_CHARACTERS = 4_000
MAX_SHARD_SUMMARY_CHARACTERS = 500
MAX_ANSWER_CHARACTERS = 1_000
MAX_KEY_POINTS = 10
MAX_KEY_POINT_CHARACTERS = 400

Question = Annotated[str, Field(min_length=1, max_length=MAX_QUESTION_CHARACTERS)]


class AnalyzeInput(BaseModel):
    """What a client submits to `ai.analyze`. Unknown members are refused."""

    model_config = ConfigDict(extra="forbid")

    document: str = Field(max_length=MAX_DOCUMENT_CHARACTERS)
    """Plain text or Markdown, any language. May be empty. The payload limit (1 MiB) bounds it as well."""
    questions: list[Question] = Field(default_factory=list, max_length=MAX_QUESTIONS)
    """Answered from the document, in this order."""
    instructions: str | None = Field(default=None, max_length=MAX_INSTRUCTIONS_CHARACTERS)
    """Wishes for tone, focus or language. The embedded back end, which writes no text, ignores them."""


class Corpus(BaseModel):
    """What BM25 must know about the whole document, so that scores of different shards compare."""

    passages: int = Field(ge=0)
    mean_length: float = Field(ge=0)
    """In terms."""
    document_frequency: dict[str, int]
    """Passages that contain the term; only terms of the questions."""


class Shard(BaseModel):
    """One contiguous piece of the document with all that any consumer needs to analyse it."""

    index: int = Field(ge=0)
    count: int = Field(ge=1)
    start: int = Field(ge=0)
    """Offset of `text` in the document, in characters (code points)."""
    text: str
    questions: list[Question] = Field(max_length=MAX_QUESTIONS)
    instructions: str | None = None
    corpus: Corpus
    embedding_tokens: int = Field(ge=0)
    """How many tokens the embedded back end may push through the model for this shard."""


class Passage(BaseModel):
    """A piece of the document that supports an answer: `text` is exactly `document[start:end]`."""

    text: str
    start: int
    end: int
    shard: int
    score: float
    """0 to 1; compares within one question of one result."""


class Finding(BaseModel):
    """What one shard says about one question."""

    answer: str | None
    passages: list[Passage] = Field(max_length=PASSAGES_PER_ANSWER)


class Extract(BaseModel):
    """A sentence picked for the summary, with its offsets in the document and its weight."""

    text: str
    start: int
    end: int
    score: float


class LetterCount(BaseModel):
    """Letters of the scripts written without spaces (Han, kana, hangul, Thai, …), and of all others."""

    cjk: int = 0
    other: int = 0


class Part(BaseModel):
    """The result of one shard."""

    shard: int
    start: int
    end: int
    summary: str
    key_points: list[str] = Field(max_length=MAX_KEY_POINTS)
    extracts: list[Extract]
    findings: list[Finding] = Field(max_length=MAX_QUESTIONS)
    letters: LetterCount
    sentences: int
    embedded_sentences: int
    """How many of them went through the embedding model; 0 for the openai back end."""
    backend: str
    model: str
    scoring: str


class Answer(BaseModel):
    """One question's answer."""

    question: str
    answer: str | None
    """None: nothing in the document supports one. The nearest passages are listed all the same."""
    passages: list[Passage]
    """Best first; three, or as many as the document has."""


class ShardRecord(BaseModel):
    """What is kept of a shard: its place, its summary, its best passage for each question."""

    shard: int
    start: int
    end: int
    summary: str
    sentences: int
    embedded_sentences: int
    scoring: str
    best: list[tuple[int, int, float] | None]
    """For each question: start, end and score of the shard's best passage."""


class LanguageShare(BaseModel):
    """Shares of the letters, 0 to 1; both 0 where the document has no letters."""

    cjk: float
    other: float


class AnalyzeResult(BaseModel):
    """The result of `ai.analyze`."""

    summary: str
    key_points: list[str]
    answers: list[Answer]
    shards: list[ShardRecord]
    backend: str
    model: str
    scoring: str
    """What ranked the passages: `minilm+bm25`, `bm25-cjk`, `model+bm25`, …; `none` without shards."""
    languages: LanguageShare
    characters: int


class MergedText(BaseModel):
    """The written part of a result: what a back end's merge adds to the ranked passages."""

    summary: str
    key_points: list[str]
    answers: list[str | None]


class BackendHealth(BaseModel):
    """Whether the back end answers."""

    backend: str
    model: str
    models: list[str]
    """What the back end offers, at most 100 names."""
    latency_ms: float | None
    """Of one small request; None when it failed."""
    error: str | None
    """None: it answers."""
