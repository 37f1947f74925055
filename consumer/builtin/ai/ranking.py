"""Rank a shard's passages for its questions and its sentences for the summary. Pure, no model.

Both back ends start from `Text`; the embedded one adds similarities, the openai one the quotes of its model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from consumer.builtin.ai import lexical
from consumer.builtin.ai.models import (
    MAX_SHARD_SUMMARY_CHARACTERS,
    PASSAGES_PER_ANSWER,
    Extract,
    LetterCount,
    Passage,
    Shard,
)
from consumer.builtin.ai.split import Sentence, spaced_letters, split_passages, split_sentences, unspaced_letters

_EXTRACTS_PER_SHARD = 3
_EXTRACTS = 12
"""Of a document of few shards: each gives more than three."""
_SAME = 0.6
"""Two sentences that share this much of the shorter one's terms say the same."""
_FEWEST_TERMS = 4
"""A shorter sentence is never extracted: it is a label, a list mark, an exclamation."""
_DRAWN = 3
"""So many marks of Markdown in one sentence are a table, code or a diagram."""


@dataclass(frozen=True)
class Text:
    """A shard's text, taken apart once."""

    shard: Shard
    sentences: list[Sentence]
    sentence_terms: list[list[str]]
    passages: list[list[int]]
    """Indices of sentences."""
    passage_terms: list[Counter[str]]
    questions: list[list[str]]
    """The terms of each question."""
    centrality: list[float]
    """Of each sentence, by its terms; 0 for headings."""

    def sentence_text(self, index: int) -> str:
        """The sentence exactly as it stands in the document."""
        sentence = self.sentences[index]
        return self.shard.text[sentence.start : sentence.end]

    def lexical_scores(self, question: int) -> list[float]:
        """BM25 of every passage for one question, 0 to 1."""
        wanted = self.questions[question]
        return [lexical.bm25(wanted, counts, self.shard.corpus) for counts in self.passage_terms]

    def passage(self, index: int, score: float) -> Passage:
        """The passage with its offsets in the document."""
        start = self.sentences[self.passages[index][0]].start
        end = self.sentences[self.passages[index][-1]].end
        offset = self.shard.start
        return Passage(
            text=self.shard.text[start:end],
            start=offset + start,
            end=offset + end,
            shard=self.shard.index,
            score=round(score, 4),
        )

    def extract(self, index: int, score: float) -> Extract:
        """The sentence with its offsets in the document."""
        sentence, offset = self.sentences[index], self.shard.start
        return Extract(
            text=one_line(self.sentence_text(index)),
            start=offset + sentence.start,
            end=offset + sentence.end,
            score=round(score, 4),
        )


def take_apart(shard: Shard) -> Text:
    """Sentences, passages and terms of a shard. About 10 ms for 6,000 characters."""
    sentences = split_sentences(shard.text)
    found = [lexical.terms(shard.text[sentence.start : sentence.end]) for sentence in sentences]
    passages = split_passages(sentences, shard.text)
    central = lexical.centrality([[] if s.heading else t for s, t in zip(sentences, found, strict=True)])
    return Text(
        shard=shard,
        sentences=sentences,
        sentence_terms=found,
        passages=passages,
        passage_terms=[Counter(term for index in passage for term in found[index]) for passage in passages],
        questions=[lexical.question_terms(question) for question in shard.questions],
        centrality=central,
    )


def passage_texts(text: str) -> list[str]:
    """The passages of a shard's text, as `take_apart` will cut it."""
    sentences = split_sentences(text)
    return [text[sentences[group[0]].start : sentences[group[-1]].end] for group in split_passages(sentences, text)]


def best_passages(text: Text, scores: Sequence[float]) -> list[int]:
    """The indices of the best passages, best first, earlier first among equals."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return order[: min(PASSAGES_PER_ANSWER, len(text.passages))]


def extracts(text: Text, score_of: Callable[[int], float]) -> list[Extract]:
    """The sentences that say most about the shard, none twice, in the order of the text."""
    long_enough = [
        index
        for index, sentence in enumerate(text.sentences)
        if not sentence.heading and len(set(text.sentence_terms[index])) >= _FEWEST_TERMS
    ]
    # A shard that is one table is summed up by its rows; elsewhere they would stand among sentences.
    candidates = [index for index in long_enough if is_prose(text.sentence_text(index))] or long_enough
    scored = {index: score_of(index) for index in candidates}
    order = sorted(candidates, key=lambda index: (-scored[index], index))
    limit = max(_EXTRACTS_PER_SHARD, _EXTRACTS // text.shard.count)
    chosen = distinct(order, lambda index: set(text.sentence_terms[index]), limit)
    return [text.extract(index, scored[index]) for index in sorted(chosen)]


def is_prose(sentence: str) -> bool:
    """False for what Markdown draws rather than says: table rows, code, diagrams, links to other pages."""
    marks = sum(sentence.count(mark) for mark in ("|", "](", "`", "──"))
    return marks < _DRAWN


def distinct(order: Sequence[int], terms_of: Callable[[int], set[str]], limit: int) -> list[int]:
    """The first `limit` of `order` that do not repeat one before them."""
    chosen: list[int] = []
    for index in order:
        if len(chosen) == limit:
            break
        if all(lexical.overlap(terms_of(index), terms_of(other)) < _SAME for other in chosen):
            chosen.append(index)
    return chosen


def shard_summary(found: Sequence[Extract]) -> str:
    """The weightiest extracts in one line, at most 500 characters."""
    best = sorted(found, key=lambda extract: -extract.score)[:_EXTRACTS_PER_SHARD]
    ordered = sorted(best, key=lambda extract: extract.start)
    return clipped(joined([extract.text for extract in ordered]), MAX_SHARD_SUMMARY_CHARACTERS)


def joined(sentences: Sequence[str]) -> str:
    """Sentences in a row: a space between them, unless both sides are of a script without spaces."""
    line = ""
    for sentence in sentences:
        tight = bool(line) and (unspaced_letters(sentence[:1]) or line[-1] in "。！？；…”」』）")
        line += sentence if tight or not line else f" {sentence}"
    return line


def one_line(text: str) -> str:
    """The text with every run of white space made one space."""
    return " ".join(text.split())


def clipped(text: str, limit: int) -> str:
    """At most `limit` characters; a cut is marked by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def letters_of(text: str) -> LetterCount:
    """Letters by script."""
    return LetterCount(cjk=unspaced_letters(text), other=spaced_letters(text))
