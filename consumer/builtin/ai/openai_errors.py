"""Turn the openai client's errors into the three that a consumer acts on: never again, later, try again.

Pure. What the server says is quoted, clipped, except where it may quote the key.
"""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import openai

from consumer.builtin.ai.backend import InferenceError
from consumer.builtin.ai.ranking import clipped, one_line
from consumer.builtin.ai.settings import AISettings
from headrace.handlers import NonRetryable, RetryAfter

DEFAULT_THROTTLE = timedelta(seconds=5)
"""For a 429 that says no time."""
LONGEST_THROTTLE = timedelta(hours=1)
_TRY_AGAIN = frozenset({408, 409, 425})  # 4xx by number, yet about the moment and not about the request


def translated(error: openai.OpenAIError, settings: AISettings) -> NonRetryable | RetryAfter | InferenceError:
    """What to raise instead of `error`."""
    where = f"the inference server at {settings.base_url}"
    if isinstance(error, openai.APITimeoutError):
        return InferenceError(f"{where} did not answer within {settings.timeout_seconds:g} s")
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        return InferenceError(f"{where} cannot be reached or cut the connection: {_said(cause or error)}")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, where, settings)
    return InferenceError(f"{where} failed in mid-answer: {_said(error)}")


def retry_after(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """The delay that a server asks for: `retry-after-ms`, or `retry-after` in seconds or as a date.

    None if it asks for none or cannot be read. Never negative, at most an hour.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = _seconds(headers.get(name, ""), unit, now)
        if seconds is not None:
            return timedelta(seconds=min(max(seconds, 0.0), LONGEST_THROTTLE.total_seconds()))
    return None


def _of_status(
    error: openai.APIStatusError, where: str, settings: AISettings
) -> NonRetryable | RetryAfter | InferenceError:
    status = error.status_code
    delay = retry_after(error.response.headers, datetime.now(UTC))
    if status == 429 and error.code != "insufficient_quota":
        return RetryAfter(f"{where} throttles (429)", DEFAULT_THROTTLE if delay is None else delay)
    if status == 503 and delay is not None:
        return RetryAfter(f"{where} is overloaded (503)", delay)
    if status >= 500 or status in _TRY_AGAIN:
        return InferenceError(f"{where} failed with {status}: {_said(error)}")
    return NonRetryable(_refusal(error, where, settings), reason=f"INFERENCE_{status}")


def _refusal(error: openai.APIStatusError, where: str, settings: AISettings) -> str:
    status = error.status_code
    if status == 401:
        return f"{where} refuses the key (401): check HEADRACE_AI_API_KEY"
    if status == 403:
        return f"{where} forbids this key the model {settings.model!r} (403)"
    if status == 404:
        return (
            f"{where} knows no model {settings.model!r} or no such path (404): "
            f"check HEADRACE_AI_MODEL and HEADRACE_AI_BASE_URL. It says: {_said(error)}"
        )
    if status == 429:
        return f"the quota of this key at {where} is used up (429, insufficient_quota)"
    return f"{where} refuses the request ({status}): {_said(error)}"


def _said(error: BaseException) -> str:
    return clipped(one_line(str(error)), 300) or type(error).__name__


def _seconds(value: str, unit: float, now: datetime) -> float | None:
    try:
        seconds = float(value) * unit
        return None if math.isnan(seconds) else seconds
    except ValueError:
        pass
    try:
        return (email.utils.parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError):  # no date either; a date without a zone cannot be compared
        return None
