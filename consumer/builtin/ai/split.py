"""Cut a document into sentences, passages and shards: by structure first, by size where there is none.

Pure and deterministic: a shard that is run again, on another consumer, sees the same sentences. Offsets are
characters (code points) of the text given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from consumer.builtin.ai.models import MAX_SHARDS

MAX_SENTENCE_CHARACTERS = 400
"""Longer ones are cut at a space, or anywhere: a line of 500 kB without punctuation is not one sentence."""
SHARD_CHARACTERS = 6_000
"""About 1,500 English tokens: a second of work, cheap to retry, large enough for a summary to mean something."""
PASSAGE_WIDTH = 400
"""Characters, with one of an unspaced script counted as two: it says about twice as much."""
_SMALLEST_SHARD = 0.6
"""From this share of the target on, a heading starts a new shard."""
_LONGEST_HEADING = 200
_WRAPPED_LINE = 60
"""A line at least this long without a full stop was wrapped by an editor: its sentence goes on."""

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"  # kana, Han
    "\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"  # hangul, rare Han
)
"""Scripts without spaces between words (and hangul, whose particles stick to them): scored by bigrams."""

_UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")
_CLOSING = "\"'”’」』）)】》\\]"
# A full-width stop ends a sentence anywhere; an ASCII one only before a space, not before a lower-case letter.
# Possessive, and starting only at the first of a run: a megabyte of dots must not take quadratic time.
_STOP = re.compile(rf"[。！？；｡…]+[{_CLOSING}]*|(?<![.!?;])[.!?;]++[{_CLOSING}]*+(?=\s++(?![a-z]))")
_ABBREVIATION = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St|Nos?|Fig|Art|Sec|vs|e\.g|i\.e|cf|approx|[A-Z])\.$")
_HEADING = re.compile(
    r"\s*(?:#{1,6}\s+\S.*|第[0-9〇零一二三四五六七八九十百]+[章节節部分条條篇].{0,60}|[一二三四五六七八九十]{1,3}、.{1,40}"
    r"|(?:\d+\.)+\d*\s+[^.!?。]{1,80})\s*"
)
_LIST_ITEM = re.compile(r"\s*(?:[-*•·+>|]|\(?\d+[.)、]|[(（][一二三四五六七八九十\da-z]+[)）])\s*")
_ENDS_SENTENCE = re.compile(rf"[。！？；｡….!?;:：][{_CLOSING}]*\s*$")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, trimmed of white space, at most 400 characters."""

    start: int
    end: int
    paragraph: int
    heading: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters."""

    start: int
    end: int


def split_sentences(text: str) -> list[Sentence]:
    """All sentences in order. Between and around them there is nothing but white space."""
    found: list[Sentence] = []
    for number, (start, end, heading) in enumerate(_paragraphs(text)):
        found.extend(Sentence(a, b, number, heading) for a, b in _sentences_of(text, start, end, heading))
    return found


def split_passages(sentences: list[Sentence], text: str) -> list[list[int]]:
    """Group sentences (by index) into passages: neighbours of a paragraph, a heading with what follows."""
    passages: list[list[int]] = []
    width = 0
    for index, sentence in enumerate(sentences):
        size = display_width(text[sentence.start : sentence.end])
        if passages and _continues(sentences, passages[-1], sentence) and width + size <= PASSAGE_WIDTH:
            passages[-1].append(index)
            width += size
        else:
            passages.append([index])
            width = size
    return passages


def split_shards(document: str) -> list[Span]:
    """Cut a document into at most 64 shards, which cover it completely and start at sentences.

    Returns an empty list for a document of nothing but white space.
    """
    sentences = split_sentences(document)
    target = max(SHARD_CHARACTERS, int(len(document) / (MAX_SHARDS * _SMALLEST_SHARD)) + 1)
    starts: list[int] = []
    previous: Sentence | None = None
    for sentence in sentences:
        if previous is None:
            starts.append(0)
        elif _starts_shard(sentence, previous, sentence.end - starts[-1], target):
            starts.append(sentence.start)
        previous = sentence
    ends = [*starts[1:], len(document)]
    return [Span(start, end) for start, end in zip(starts, ends, strict=False)]


def display_width(text: str) -> int:
    """Characters, those of unspaced scripts counted twice."""
    return len(text) + unspaced_letters(text)


def unspaced_letters(text: str) -> int:
    """How many characters belong to a script written without spaces."""
    return sum(len(run) for run in _UNSPACED_RUN.findall(text))


def spaced_letters(text: str) -> int:
    """How many letters belong to the other scripts."""
    return sum(map(str.isalpha, _UNSPACED_RUN.sub("", text)))


def _starts_shard(sentence: Sentence, previous: Sentence, size: int, target: int) -> bool:
    if size > target:
        return True
    if size - (sentence.end - sentence.start) < target * _SMALLEST_SHARD or previous.heading:
        return False
    return sentence.heading or (size > target * 0.9 and sentence.paragraph != previous.paragraph)


def _continues(sentences: list[Sentence], passage: list[int], sentence: Sentence) -> bool:
    last = sentences[passage[-1]]
    if sentence.heading:
        return last.heading
    return last.heading or sentence.paragraph == last.paragraph


def _paragraphs(text: str) -> Iterator[tuple[int, int, bool]]:
    """Ranges of lines that belong together: a heading alone, a list item alone, wrapped lines joined."""
    start, end, last = 0, 0, ""
    position = 0
    for line in text.splitlines(keepends=True):
        following = position + len(line)
        heading = len(line) <= _LONGEST_HEADING and bool(_HEADING.fullmatch(line))
        if heading or not line.strip() or not _wraps(last, line):
            if end > start:
                yield start, end, False
            start = end = position
        if heading:
            yield position, following, True
            start = end = following
        elif line.strip():
            end = following
        last = "" if heading else line
        position = following
    if end > start:
        yield start, end, False


def _wraps(last: str, line: str) -> bool:
    """Whether `line` goes on with the paragraph of the line `last` above it."""
    if not last.strip() or _LIST_ITEM.match(line):
        return False
    if _ENDS_SENTENCE.search(last.rstrip()[-8:]):
        return len(last) >= _WRAPPED_LINE // 2
    return len(last) >= _WRAPPED_LINE or line.lstrip()[:1].islower()


def _sentences_of(text: str, start: int, end: int, heading: bool) -> Iterator[tuple[int, int]]:
    begin = start
    if not heading:
        for stop in _STOP.finditer(text, start, end):
            if _ABBREVIATION.search(text, max(begin, stop.end() - 8), stop.end()):
                continue
            yield from _bounded(text, begin, stop.end())
            begin = stop.end()
    yield from _bounded(text, begin, end)


def _bounded(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The trimmed range, cut into pieces of at most MAX_SENTENCE_CHARACTERS."""
    while True:
        start, end = _trimmed(text, start, end)
        if end - start <= MAX_SENTENCE_CHARACTERS:
            break
        limit = start + MAX_SENTENCE_CHARACTERS
        half = start + MAX_SENTENCE_CHARACTERS // 2
        pause = max(text.rfind(" ", half, limit), text.rfind("，", half, limit - 1) + 1)
        cut = pause if pause > half else limit
        yield _trimmed(text, start, cut)
        start = cut
    if end > start:
        yield start, end


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
