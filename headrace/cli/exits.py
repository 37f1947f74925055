"""How the command line ends: its exit codes, and its errors as one sentence, with --json as an object too."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from headrace.errors import HeadraceError

# typer brings its own copy of click since 0.26 and used the real one before: the class above all errors of usage.
_ANCESTRY = typer.BadParameter.__mro__
UsageFailure: type[Exception] = _ANCESTRY[_ANCESTRY.index(Exception) - 1]


class ExitCode(IntEnum):
    """What the shell sees; documented in docs/cli.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    REFUSED = 5
    EXHAUSTED = 6
    INTERRUPTED = 130


_BY_STATUS = {
    "INVALID_ARGUMENT": ExitCode.USAGE,
    "OUT_OF_RANGE": ExitCode.USAGE,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
    "CANCELLED": ExitCode.UNAVAILABLE,
    "FAILED_PRECONDITION": ExitCode.REFUSED,
    "ALREADY_EXISTS": ExitCode.REFUSED,
    "ABORTED": ExitCode.REFUSED,
    "UNAUTHENTICATED": ExitCode.REFUSED,
    "PERMISSION_DENIED": ExitCode.REFUSED,
    "RESOURCE_EXHAUSTED": ExitCode.EXHAUSTED,
}


class Failure(Exception):
    """The end of a verb that did not do what it was asked to."""

    def __init__(
        self,
        message: str,
        exit_code: int = ExitCode.FAILED,
        *,
        reason: str = "",
        status: str | None = None,
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`status` is a gRPC status' name, or None; `violations` are pairs of field and description."""
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.reason = reason
        self.status = status
        self.violations = violations

    @classmethod
    def of(cls, error: HeadraceError) -> Failure:
        """Return what the shell gets to see of the client's error."""
        status = error.code.name if error.code is not None else None
        return cls(
            error.message,
            _BY_STATUS.get(status or "", ExitCode.FAILED),
            reason=error.reason,
            status=status,
            violations=[(one.field, one.description) for one in error.violations],
        )

    def report(self, as_json: bool) -> None:
        """Write the sentence, and with `as_json` the object, to standard error."""
        lines = [f"headrace: {_one_line(self.message)}"]
        lines += [f"  {field}: {what}" for field, what in self.violations if what not in self.message]
        if as_json:
            lines.append(json.dumps({"error": self._content()}, ensure_ascii=False, separators=(",", ":")))
        sys.stderr.write("\n".join(lines) + "\n")

    def _content(self) -> dict[str, object]:
        return {
            "reason": self.reason,
            "code": self.status,
            "message": self.message,
            "violations": [{"field": field, "description": what} for field, what in self.violations],
        }


def usage_failure(message: str) -> Failure:
    """Return the failure for a call that makes no sense."""
    return Failure(message, ExitCode.USAGE, reason="USAGE", status="INVALID_ARGUMENT")


def _one_line(text: str) -> str:
    return " ".join(text.split())
