"""What every consumer collects from `consumer.builtin`."""

import subprocess
import sys

import pytest

from consumer.builtin import Analyze, echo
from consumer.builtin.ai.models import AnalyzeInput
from consumer.builtin.ai.settings import AISettings
from headrace.handlers import check_sharded, declaration_of, input_model
from headrace.testing import run_handler


async def test_echo_returns_its_input_unchanged() -> None:
    payload = {"n": 9007199254740993, "nested": {"b": [1, 2.5, None, True], "a": "数据"}}
    result = (await run_handler(echo, payload)).result
    assert result == {"n": 9007199254740993, "nested": {"b": [1, 2.5, None, True], "a": "数据"}}
    assert type(result["n"]) is int


def test_the_kinds_are_declared() -> None:
    declared = declaration_of(echo)
    assert declared is not None
    assert (declared.kind, declared.execution, declared.queue) == ("echo", "async", None)
    check_sharded(Analyze)
    assert Analyze.kind == "ai.analyze"
    assert input_model(Analyze.plan, 2) is AnalyzeInput


def test_importing_the_built_in_kinds_loads_nothing_heavy() -> None:
    program = (
        "import sys, consumer.builtin, consumer.builtin.ai;"
        "print([n for n in ('numpy', 'tokenizers', 'safetensors', 'openai', 'httpx2') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_the_ai_settings_ignore_every_other_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("HEADRACE_AI_BASE_URL", "")
    monkeypatch.setenv("HEADRACE_AI_API_KEY", "sk-secret")
    settings = AISettings()
    assert (settings.backend, settings.base_url) == ("embedded", "https://api.openai.com/v1")
    assert "sk-secret" not in repr(settings)
