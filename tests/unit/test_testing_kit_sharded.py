"""`run_sharded` and its parts: a task in shards without a broker."""

import asyncio
import json
from typing import Any

import pydantic
import pytest

from consumer.invocation import outcome_of
from consumer.registry import collect
from headrace import NonRetryable, ShardedHandler, TaskContext
from headrace.testing import InputRefused, ResultRefused, run_merge, run_plan, run_shard, run_sharded
from headrace_core.tasks.outcome import Planned, Raised
from tests.handlers import sample_handlers as samples
from tests.handlers import workshop


async def test_a_task_in_parts_is_planned_run_and_merged() -> None:
    run = await run_sharded(samples.Words, {"texts": ["one two", "three", ""]})
    assert run.result == {"total": 3, "parts": [2, 1, 0], "asked": 3}
    assert [shard.shard for shard in run.shards] == [{"text": "one two"}, {"text": "three"}, {"text": ""}]
    assert run.parts == [shard.part for shard in run.shards] == [2, 1, 0]
    assert run.plan.result == [shard.shard for shard in run.shards]


async def test_no_shards_are_merged_at_once() -> None:
    assert (await run_sharded(samples.Words, {"texts": []})).result == {"total": 0, "parts": [], "asked": 0}


async def test_a_failing_shard_raises_its_own_exception() -> None:
    with pytest.raises(NonRetryable, match="a bad text"):
        await run_sharded(samples.Words, {"texts": ["one", "bad"]})
    with pytest.raises(ValueError, match="flaky"):
        await run_sharded(samples.Words, {"texts": ["flaky"]})


async def test_a_shard_has_as_many_attempts_as_the_test_says() -> None:
    run = await run_sharded(samples.Words, {"texts": ["flaky", "two words"]}, max_attempts=2)
    assert run.parts == [1, 2]
    assert [len(shard.attempts) for shard in run.shards] == [2, 1]
    assert isinstance(run.shards[0].attempts[0].error, ValueError)
    with pytest.raises(NonRetryable):
        await run_sharded(samples.Words, {"texts": ["bad"]}, max_attempts=2)


class Resuming(ShardedHandler):
    """Each shard fails once, after a checkpoint."""

    kind = "kit-resuming"

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"n": n} for n in range(3)]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> Any:
        if ctx.restored is None:
            await ctx.checkpoint({"seen": ctx.shard_index})
            raise ConnectionError
        return [ctx.restored["seen"], ctx.attempt, ctx.epoch, ctx.task_id]

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[Any]) -> list[Any]:
        return parts


async def test_a_shards_next_attempt_has_its_checkpoint() -> None:
    run = await run_sharded(Resuming, {}, max_attempts=3, task_id="t")
    assert run.result == [[0, 2, 2, "t"], [1, 2, 2, "t"], [2, 2, 2, "t"]]


async def test_under_a_quorum_failed_and_late_shards_are_left_out() -> None:
    run = await run_sharded(workshop.MostlyGood, {})
    assert (run.result, run.parts) == ({"parts": [0, 2]}, [0, 2])
    assert isinstance(run.shards[1].error, NonRetryable)
    late = await run_sharded(samples.Tolerant, {"texts": ["a", "b b", "c"]}, missing={0})
    assert late.result["parts"] == [2, 1]
    assert late.shards[0].attempts == []
    with pytest.raises(NonRetryable):
        await run_sharded(samples.Tolerant, {"texts": ["bad", "bad", "c"]})


async def test_more_missing_than_the_quorum_allows_is_the_tests_mistake() -> None:
    with pytest.raises(ValueError, match="1 of 1 shards are missing; the quorum needs 1"):
        await run_sharded(samples.Words, {"texts": ["a"]}, missing=[0])
    with pytest.raises(ValueError, match=r"names the shards \[7\]; the plan has 1"):
        await run_sharded(samples.Tolerant, {"texts": ["a"]}, missing=[7])


class Forgetful(ShardedHandler):
    """Keeps on `self` what other consumers do not have."""

    kind = "kit-forgetful"
    texts: list[str]

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        self.texts = ["a", "b"]
        return [{"n": n} for n in range(2)]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> str:
        text: str = self.texts[shard["n"]]
        return text

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[str]) -> list[str]:
        return parts


async def test_what_the_plan_keeps_on_self_the_shards_do_not_see() -> None:
    with pytest.raises(AttributeError, match="texts"):
        await run_sharded(Forgetful, {})
    assert (await run_sharded(Forgetful(), {})).result == ["a", "b"]


class Sizes(pydantic.BaseModel):
    """The input of `Bad`."""

    what: str


PLANS: dict[str, Any] = {
    "text": "shards",
    "number": [1],
    "nan": [{"n": float("nan")}],
    "nothing": None,
    "none": [],
    "tuple": ({"n": 1}, {"n": 2}),
    "model": [Sizes(what="x")],
    "many": [{}] * 10_000,
    "too many": [{}] * 10_001,
    "large": [{"text": "x" * 1_000_000}] * 16,
    "too large": [{"text": "x" * 1_000_000}] * 17,
}


class Bad(ShardedHandler):
    kind = "kit-bad"
    quorum = 0.5

    async def plan(self, ctx: TaskContext, input: Sizes) -> Any:
        return PLANS[input.what]

    async def merge(self, ctx: TaskContext, input: Sizes, parts: list[Any]) -> str:
        return input.what


@pytest.mark.parametrize("what", list(PLANS))
async def test_a_plan_is_judged_as_a_consumer_judges_it(what: str) -> None:
    consumers = collect([__name__], built_in=False).handlers["kit-bad"]
    judged = outcome_of(consumers, "PLAN", PLANS[what])
    if isinstance(judged, Planned):
        assert (await run_plan(Bad, {"what": what})).result == [json.loads(shard) for shard in judged.shards]
        return
    assert isinstance(judged, Raised)
    with pytest.raises(ResultRefused) as refused:
        await run_sharded(Bad, {"what": what})
    assert str(refused.value) == judged.message


async def test_the_input_is_the_plans_model_in_plan_and_merge() -> None:
    assert (await run_sharded(Bad, {"what": "none"})).result == "none"
    with pytest.raises(InputRefused, match="what: Field required"):
        await run_sharded(Bad, {})


async def test_each_step_runs_alone() -> None:
    assert (await run_plan(samples.Words, {"texts": ["a"]})).result == [{"text": "a"}]
    assert (await run_shard(samples.Words, {"text": "a b"}, index=4)).result == 2
    assert (await run_merge(samples.Words, {"texts": ["a"]}, [5])).result == {"total": 5, "parts": [5], "asked": 1}
    second = await run_shard(Resuming, {"n": 1}, index=1, restored={"seen": 0}, attempt=2, task_id="t")
    assert second.result == [0, 2, 2, "t"]


class Waiting(ShardedHandler):
    kind = "kit-waiting"

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> None:
        await ctx.checkpoint("so far")
        await asyncio.Event().wait()


async def test_a_shard_can_be_interrupted() -> None:
    run = await run_shard(Waiting, {}, interrupt_when=lambda run: run.checkpoint is not None, grace=0)
    assert (run.interrupted, run.checkpoint) == (True, "so far")


async def test_shards_run_at_once_up_to_the_limit() -> None:
    class Meeting(Resuming):
        kind = "kit-meeting"
        running = 0
        most = 0

        async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> None:
            Meeting.running += 1
            Meeting.most = max(Meeting.most, Meeting.running)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            Meeting.running -= 1

    await run_sharded(Meeting, {})
    assert Meeting.most == 3
    Meeting.most = 0
    await run_sharded(Meeting, {}, concurrency=1)
    assert Meeting.most == 1


async def test_a_method_that_is_not_async_is_named() -> None:
    class Plain(Resuming):
        kind = "kit-plain-plan"

        def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
            return []

    with pytest.raises(TypeError, match=r"Plain\.plan must be an async method"):
        await run_sharded(Plain, {})


async def test_an_assertion_helper_within_a_shard_fails_the_test_as_it_is() -> None:
    class Failing(Resuming):
        kind = "kit-failing"

        async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> None:
            pytest.fail("seen in the handler")

    with pytest.raises(pytest.fail.Exception, match="seen in the handler"):
        await run_sharded(Failing, {})
