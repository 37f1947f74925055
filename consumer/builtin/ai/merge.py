"""Put the parts of a document together: the best passages of all shards, the record of each, the written text.

Pure. Everything is bounded, so the result stays below 1 MiB (see `models`).
"""

from __future__ import annotations

from collections.abc import Sequence

from consumer.builtin.ai import lexical
from consumer.builtin.ai.models import (
    MAX_KEY_POINT_CHARACTERS,
    MAX_KEY_POINTS,
    MAX_SUMMARY_CHARACTERS,
    PASSAGES_PER_ANSWER,
    AnalyzeInput,
    AnalyzeResult,
    Answer,
    Extract,
    LanguageShare,
    MergedText,
    Part,
    Passage,
    ShardRecord,
)
from consumer.builtin.ai.ranking import clipped, distinct, joined

_SUMMARY_SENTENCES = 6


def result_of(
    input: AnalyzeInput, parts: Sequence[Part], written: MergedText, backend: str, model: str
) -> AnalyzeResult:
    """The whole result; `written` has one answer for each question."""
    questions = range(len(input.questions))
    return AnalyzeResult(
        summary=written.summary,
        key_points=written.key_points,
        answers=[
            Answer(
                question=input.questions[number],
                answer=written.answers[number],
                passages=best_passages_of(parts, number),
            )
            for number in questions
        ],
        shards=[_record_of(part, len(input.questions)) for part in parts],
        backend=backend,
        model=model,
        scoring=scoring_of(parts),
        languages=_languages_of(parts),
        characters=len(input.document),
    )


def best_passages_of(parts: Sequence[Part], question: int) -> list[Passage]:
    """The best passages of all shards for a question. Scores compare: all shards know the whole corpus."""
    found = [passage for part in parts for passage in part.findings[question].passages]
    found.sort(key=lambda passage: (-passage.score, passage.start))
    return found[:PASSAGES_PER_ANSWER]


def nothing_written(input: AnalyzeInput) -> MergedText:
    """The written part of a document without a sentence: nothing to say, no answer to any question."""
    return MergedText(summary="", key_points=[], answers=[None] * len(input.questions))


def extractive_text(input: AnalyzeInput, parts: Sequence[Part]) -> MergedText:
    """Summary, key points and answers, chosen among what the shards extracted.

    The summary takes the sentences that are central in the whole document; the key points the best of each shard
    that the summary does not say already.
    """
    found = [extract for part in parts for extract in part.extracts]
    words = [lexical.terms(extract.text) for extract in found]
    central = lexical.centrality(words)
    weights = [extract.score + 0.5 * central[index] for index, extract in enumerate(found)]
    order = sorted(range(len(found)), key=lambda index: (-weights[index], index))
    picked = distinct(order, lambda index: set(words[index]), _SUMMARY_SENTENCES + MAX_KEY_POINTS)
    in_summary = sorted(picked[:_SUMMARY_SENTENCES])
    points = sorted(_one_a_shard(found, parts, picked[_SUMMARY_SENTENCES:]) or in_summary[:MAX_KEY_POINTS])
    return MergedText(
        summary=clipped(joined([found[index].text for index in in_summary]), MAX_SUMMARY_CHARACTERS),
        key_points=[clipped(found[index].text, MAX_KEY_POINT_CHARACTERS) for index in points],
        answers=[answer_of(parts, number) for number in range(len(input.questions))],
    )


def answer_of(parts: Sequence[Part], question: int) -> str | None:
    """The answer of the shard that has the best passage and an answer at all."""
    answering = [part.findings[question] for part in parts if part.findings[question].answer]
    best = max(answering, key=lambda found: found.passages[0].score if found.passages else 0.0, default=None)
    return best.answer if best else None


def scoring_of(parts: Sequence[Part]) -> str:
    """What ranked the passages, over all parts: their names, joined and each said once."""
    names = dict.fromkeys(name for part in parts for name in part.scoring.split("+"))
    order = ("model", "minilm", "bm25", "bm25-cjk")
    return "+".join(sorted(names, key=order.index)) or "none"


def _one_a_shard(found: Sequence[Extract], parts: Sequence[Part], order: Sequence[int]) -> list[int]:
    """The first of `order` from each shard, then the others, up to the limit."""
    shard_of = {extract.start: part.shard for part in parts for extract in part.extracts}
    firsts: dict[int, int] = {}
    for index in order:
        firsts.setdefault(shard_of[found[index].start], index)
    return list(dict.fromkeys([*firsts.values(), *order]))[:MAX_KEY_POINTS]


def _record_of(part: Part, questions: int) -> ShardRecord:
    best: list[tuple[int, int, float] | None] = []
    for number in range(questions):
        passages = part.findings[number].passages
        best.append((passages[0].start, passages[0].end, passages[0].score) if passages else None)
    return ShardRecord(
        shard=part.shard,
        start=part.start,
        end=part.end,
        summary=part.summary,
        sentences=part.sentences,
        embedded_sentences=part.embedded_sentences,
        scoring=part.scoring,
        best=best,
    )


def _languages_of(parts: Sequence[Part]) -> LanguageShare:
    cjk = sum(part.letters.cjk for part in parts)
    other = sum(part.letters.other for part in parts)
    total = cjk + other or 1
    return LanguageShare(cjk=round(cjk / total, 4), other=round(other / total, 4))
