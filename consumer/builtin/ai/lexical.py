"""Score passages by their words: BM25 over words, and over character bigrams where a script has no spaces.

The embedding model does not know most Chinese characters; bigrams find what it cannot. Scores are divided by
the best that the question could reach, so they lie between 0 and 1 and compare between shards.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from consumer.builtin.ai.models import Corpus
from consumer.builtin.ai.split import UNSPACED

_K1 = 1.2
_B = 0.5  # passages are cut to similar lengths: half of the usual penalty for long ones
MAX_QUESTION_TERMS = 64
"""A longer question is scored by its first terms: they travel in every shard."""

_TERM = re.compile(rf"([{UNSPACED}]+)|([^\W_{UNSPACED}]+)")
_STOP_WORDS = """
a about after all also am an and any are as at be been before being by can could did do does doing done for
from had has have how i if in into is it its may me might must my no not of on or our out shall she he should
so some such than that the their them then there these they this those to under up us was we were what when
where which while who whom whose why will with would you your get gets
"""
_STOP_BIGRAMS = """
什么 怎么 怎样 多少 哪些 哪个 哪里 如何 为何 是否 可以 应该 应当 需要 必须 不能 不得 没有 以后 以前
我们 他们 一个 以及 或者
"""


def terms(text: str) -> list[str]:
    """Stems of words in lower case; bigrams of unspaced scripts (a lone character stands by itself)."""
    found: list[str] = []
    for run, word in _TERM.findall(unicodedata.normalize("NFKC", text).casefold()):
        if word:
            found.append(_stem(word))
        elif len(run) == 1:
            found.append(run)
        else:
            found.extend(run[i : i + 2] for i in range(len(run) - 1))
    return found


def question_terms(question: str) -> list[str]:
    """The distinct terms of a question that carry meaning, in order, at most 64.

    Stop words are dropped unless nothing else is left.
    """
    distinct = list(dict.fromkeys(terms(question)))
    meaningful = [term for term in distinct if term not in _STOPS]
    return (meaningful or distinct)[:MAX_QUESTION_TERMS]


def corpus_of(passages: Iterable[str], questions: Sequence[str]) -> Corpus:
    """Count what BM25 needs over all passages of a document."""
    wanted = {term for question in questions for term in question_terms(question)}
    frequency: Counter[str] = Counter()
    count = total = 0
    for passage in passages:
        found = terms(passage)
        count += 1
        total += len(found)
        frequency.update(wanted.intersection(found))
    return Corpus(passages=count, mean_length=total / count if count else 0.0, document_frequency=dict(frequency))


def bm25(question: Sequence[str], passage: Counter[str], corpus: Corpus) -> float:
    """Score a passage (its term counts) for a question (its terms): 0, no common term, up to 1."""
    length = passage.total()
    norm = _K1 * (1 - _B + _B * length / corpus.mean_length) if corpus.mean_length else _K1
    score = best = 0.0
    for term in question:
        frequency = corpus.document_frequency.get(term, 0)
        weight = math.log(1 + (corpus.passages - frequency + 0.5) / (frequency + 0.5))
        best += weight * (_K1 + 1)
        if count := passage.get(term, 0):
            score += weight * count * (_K1 + 1) / (count + norm)
    return max(0.0, min(1.0, score / best)) if best > 0 else 0.0


def centrality(sentences: Sequence[Sequence[str]]) -> list[float]:
    """How much each sentence (its terms) is about what all of them are about: 0 to 1, the best is 1.

    The mean commonness of its terms, damped for short sentences, which would win with one common word.
    """
    frequency = Counter(term for sentence in sentences for term in set(sentence) if term not in _STOPS)
    raw = [_centrality(set(sentence) - _STOPS, frequency) for sentence in sentences]
    best = max(raw, default=0.0)
    return [value / best if best else 0.0 for value in raw]


def overlap(first: set[str], second: set[str]) -> float:
    """The share of the smaller set that the larger contains: 0 to 1; 0 where one is empty."""
    smaller = min(len(first), len(second))
    return len(first & second) / smaller if smaller else 0.0


def _centrality(distinct: set[str], frequency: Counter[str]) -> float:
    if not distinct:
        return 0.0
    mean = sum(math.log1p(frequency[term] - 1) for term in distinct) / len(distinct)
    return (mean + 0.05) * min(1.0, len(distinct) / 8)


def _stem(word: str) -> str:
    """A light stem of an English word; anything else stays as it is."""
    if not word.isascii() or len(word) < 4:
        return word
    for ending, left, replacement in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= left:
            return word[: -len(ending)] + replacement
    return word


# (ending, fewest characters that must be left, what takes its place); the first that fits.
_ENDINGS = (
    ("ies", 2, "y"),
    ("sses", 1, "ss"),
    ("ing", 4, ""),
    ("ed", 4, ""),
    ("ss", 1, "ss"),
    ("es", 4, ""),
    ("us", 1, "us"),
    ("s", 3, ""),
    ("e", 4, ""),
)
_STOPS = frozenset(_STOP_BIGRAMS.split()) | {_stem(word) for word in _STOP_WORDS.split()}
