"""Splitting: complete, bounded, deterministic, and linear in time."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.builtin.ai.models import MAX_SHARDS
from consumer.builtin.ai.split import (
    MAX_SENTENCE_CHARACTERS,
    SHARD_CHARACTERS,
    split_passages,
    split_sentences,
    split_shards,
)

PIECES = st.sampled_from(
    [
        "Word ",
        "数据库",
        "。",
        "！",
        "？",
        "；",
        ". ",
        "... ",
        "\n",
        "\n\n",
        "\r\n",
        " ",
        "# A\n",
        "- b\n",
        "3.14",
        "”",
        "e.g. ",
        "\u2028",
        "x" * 500,
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=60).map("".join))


def sentences_of(text: str) -> list[str]:
    return [text[sentence.start : sentence.end] for sentence in split_sentences(text)]


@given(TEXTS)
@settings(max_examples=300)
def test_sentences_leave_nothing_out_but_white_space(text: str) -> None:
    sentences = split_sentences(text)
    position = 0
    for sentence in sentences:
        assert text[position : sentence.start].strip() == ""
        assert 0 < sentence.end - sentence.start <= MAX_SENTENCE_CHARACTERS
        position = sentence.end
    assert text[position:].strip() == ""
    groups = split_passages(sentences, text)
    assert [index for group in groups for index in group] == list(range(len(sentences)))


@given(TEXTS, st.integers(1, 400))
@settings(max_examples=100)
def test_shards_cover_the_document_and_are_few(text: str, times: int) -> None:
    document = text * times
    shards = split_shards(document)
    assert shards == split_shards(document)
    assert len(shards) <= MAX_SHARDS
    if not document.strip():
        assert shards == []
        return
    assert (shards[0].start, shards[-1].end) == (0, len(document))
    assert all(before.end == after.start for before, after in itertools.pairwise(shards))
    limit = max(SHARD_CHARACTERS, len(document) / (MAX_SHARDS * 0.6) + 1) + MAX_SENTENCE_CHARACTERS
    whole = [document[shard.start : shard.end].strip() for shard in shards]
    assert all(text for text in whole)
    assert all(len(part) <= limit for part in whole)


def test_chinese_sentences_end_at_full_width_stops_and_keep_their_quotes() -> None:
    text = "员工应当遵守制度。“为什么？”他问；没有人回答！最后一句没有标点"
    expected = ["员工应当遵守制度。", "“为什么？”", "他问；", "没有人回答！", "最后一句没有标点"]
    assert sentences_of(text) == expected


def test_english_sentences_know_abbreviations_numbers_and_wrapped_lines() -> None:
    text = (
        "Dr. Smith measured 3.14 metres, e.g. here. It held!\n"
        "This line was wrapped by an editor because it had become rather long,\n"
        'and it ends here. "Quoted." Then more.'
    )
    assert sentences_of(text) == [
        "Dr. Smith measured 3.14 metres, e.g. here.",
        "It held!",
        "This line was wrapped by an editor because it had become rather long,\nand it ends here.",
        '"Quoted."',
        "Then more.",
    ]


def test_lines_list_items_and_headings_stand_alone() -> None:
    text = "# Title\nshort line\nAnother line\n- one\n- two\n第一章 总则\n正文"
    assert sentences_of(text) == ["# Title", "short line", "Another line", "- one", "- two", "第一章 总则", "正文"]
    headings = [text[s.start : s.end] for s in split_sentences(text) if s.heading]
    assert headings == ["# Title", "第一章 总则"]


def test_a_heading_goes_with_what_follows_it() -> None:
    text = "# Leave\n\nTwenty-six days a year.\n\nAnother paragraph."
    assert split_passages(split_sentences(text), text) == [[0, 1], [2]]


def test_a_shard_starts_at_a_heading_where_it_can() -> None:
    section = "## Section\n\n" + "A sentence of some length stands here. " * 110 + "\n\n"
    document = section * 3
    assert all(document[shard.start :].startswith("## Section") for shard in split_shards(document))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "document",
    [
        "." * 1_000_000,
        '"' * 1_000_000,
        '."' * 500_000,
        "1." * 500_000,
        "\n" * 1_000_000,
        " " * 999_999 + "a",
        "#" * 1_000_000,
        ".\t" * 200_000,
    ],
    ids=["dots", "quotes", "dots and quotes", "numbers", "lines", "spaces", "marks", "stops"],
)
def test_a_megabyte_of_punctuation_takes_seconds_at_most(document: str) -> None:
    assert len(split_shards(document)) <= MAX_SHARDS


def test_one_giant_line_is_cut_at_spaces_and_else_anywhere() -> None:
    words = sentences_of("word " * 20_000)
    assert all(piece.endswith("word") for piece in words)
    assert {len(piece) for piece in sentences_of("据" * 1_000)} == {400, 200}
