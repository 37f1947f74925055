"""Handlers that return, or raise, what cannot be stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic

from headrace import NonRetryable, ShardedHandler, SyncTaskContext, TaskContext, handler


class Loose(pydantic.BaseModel):
    """A model whose type does not say what is in it."""

    value: Any


class Silent(Exception):
    """Has no text, not even an empty one."""

    def __str__(self) -> str:
        raise ValueError("no text")


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def value_of(name: str) -> Any:
    """The value that `name` stands for; raises where it stands for an exception."""
    if name == "raises-bad-text":
        raise ValueError("a\0b\ud800")
    if name == "raises-bad-reason":
        raise NonRetryable("a\0b\ud800", reason="R\0\ud800")
    if name == "raises-without-text":
        raise Silent
    # Made only when asked for: building all of them takes the loop 50 ms.
    values: dict[str, Callable[[], Any]] = {
        "nul": lambda: {"a": "\0"},
        "nan": lambda: {"a": float("nan")},
        "infinity": lambda: [float("inf")],
        "nan-in-a-model": lambda: Loose(value={"b": [float("nan")]}),
        "surrogate": lambda: {"a": "\ud800"},
        "deep": lambda: _deep(20_000),
        "33-levels": lambda: _deep(33),
        "huge-number": lambda: {"a": 10**400},
        "longest-number": lambda: {"a": 10**5000},
        "too-large": lambda: {"a": "x" * 1024 * 1024},
        "somewhat-larger": lambda: {"a": "x" * 20},
        "largest": lambda: "x" * (1024 * 1024 - 4),
        "an-object": lambda: {"a": object()},
    }
    return values.get(name, lambda: {"fine": True})()


@handler("bad-async")
async def bad_async(ctx: TaskContext, input: dict[str, Any]) -> Any:
    return value_of(input["value"])


@handler("bad-thread")
def bad_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> Any:
    return value_of(input["value"])


@handler("bad-process", execution="process")
def bad_process(ctx: SyncTaskContext, input: dict[str, Any]) -> Any:
    return value_of(input["value"])


def _answer(name: str) -> Any:
    try:
        return value_of(name)
    except Exception as error:  # noqa: BLE001 - a batch handler's way to fail one of its inputs
        return error


@handler("bad-batch", batch=True)
async def bad_batch(ctx: Any, inputs: list[dict[str, Any]]) -> list[Any]:
    return [_answer(item["value"]) for item in inputs]


class BadShards(ShardedHandler):
    """Three shards; `place` says where the bad value is: in the plan, in a part or in the merged result."""

    kind = "bad-shards"

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[Any]:
        if input["place"] == "whole-plan":
            return [{"a": "x" * 1000_000}] * 17 if input["value"] == "plan-too-large" else [{}] * 10_001
        bad = input["value"] if input["place"] == "shard" else ""
        shards: list[Any] = [{"value": ""}, {"value": bad}, {"value": ""}]
        return [*shards[:2], {"value": value_of(input["value"])}] if input["place"] == "plan" else shards

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> Any:
        return value_of(shard["value"])

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[Any]) -> Any:
        return value_of(input["value"]) if input["place"] == "merge" else {"parts": parts}
