"""BM25 over words and character bigrams."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from consumer.builtin.ai.lexical import bm25, centrality, corpus_of, question_terms, terms
from consumer.builtin.ai.models import MAX_QUESTION_CHARACTERS


def test_words_are_stemmed_and_chinese_becomes_bigrams() -> None:
    assert terms("Books, BOOKED. Ｂｏｏｋ") == ["book", "book", "book"]
    assert terms("数据库 a 茶") == ["数据", "据库", "a", "茶"]
    assert terms("Postgres18使用 ok") == ["postgres18", "使用", "ok"]
    assert terms("¤ — … \n") == []


def test_a_question_keeps_what_carries_meaning() -> None:
    assert question_terms("What is the lease of a unit?") == ["leas", "unit"]
    assert question_terms("What is that?") == ["what", "is", "that"]
    assert len(question_terms("据库存完整" * 100)) <= 64


def test_the_passage_with_the_rare_term_wins() -> None:
    passages = ["the unit is renewed", "the lease of the unit", "the unit waits", "the unit runs"]
    question = question_terms("unit lease")
    corpus = corpus_of(passages, ["unit lease"])
    scores = [bm25(question, Counter(terms(passage)), corpus) for passage in passages]
    assert max(range(4), key=scores.__getitem__) == 1
    assert corpus.document_frequency == {"unit": 4, "leas": 1}


@given(st.lists(st.text(max_size=60), max_size=8), st.text(min_size=1, max_size=MAX_QUESTION_CHARACTERS))
def test_scores_lie_between_0_and_1(passages: list[str], question: str) -> None:
    corpus = corpus_of(passages, [question])
    for passage in passages:
        assert 0 <= bm25(question_terms(question), Counter(terms(passage)), corpus) <= 1
    weights = centrality([terms(passage) for passage in passages])
    assert all(0 <= weight <= 1 for weight in weights)
