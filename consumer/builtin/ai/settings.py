"""Which back end `ai.analyze` uses, from the environment (HEADRACE_AI_…).

Every other HEADRACE_ variable belongs to the services' own settings, which refuse unknown names; here they
are ignored.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class AISettings(BaseSettings):
    """The settings of the inference back end.

    Raises:
        pydantic.ValidationError: an unknown back end, a timeout not above 0, `openai` without a model.
    """

    model_config = SettingsConfigDict(env_prefix="HEADRACE_AI_", env_ignore_empty=True, extra="ignore")

    backend: Literal["embedded", "openai"] = "embedded"
    """`embedded` needs no server; `openai` is any server that speaks the chat completions API."""
    base_url: str = Field(default="https://api.openai.com/v1", pattern=r"^https?://")
    """openai only: the URL up to and including `/v1`."""
    model: str = ""
    """openai only, and required there: the model's name as the server knows it."""
    api_key: SecretStr = SecretStr("")
    """openai only. Empty for servers that check none."""
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    """openai only: for one whole completion, its stream included."""

    count_tokens: bool = False
    """openai only: ask the server for the usage of each completion. Some servers refuse the question."""
    prompt_price: float = Field(default=0.0, ge=0)
    """openai only: for a million tokens of prompts, in whatever currency the metric is to have."""
    completion_price: float = Field(default=0.0, ge=0)
    """openai only: the same for completions."""

    @model_validator(mode="after")
    def _needs_a_model(self) -> Self:
        if self.backend == "openai" and not self.model:
            raise ValueError("HEADRACE_AI_BACKEND=openai needs HEADRACE_AI_MODEL (its name on the server)")
        return self
