"""The entry point: global options, all verbs, and how every error becomes one sentence and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from headrace import __version__
from headrace.cli import analyze, dead_letters, queues, server_verbs, status, tasks, token, verify, watching
from headrace.cli.exits import ExitCode, Failure, UsageFailure, usage_failure
from headrace.cli.session import (
    CaOption,
    CertOption,
    KeyOption,
    NamespaceOption,
    ProducerOption,
    StatusOption,
    Target,
    TlsOption,
    TokenOption,
)

PROGRAM = "headrace"


def main() -> None:
    """Run the command line with sys.argv and exit."""
    for stream in (sys.stdout, sys.stderr):
        _as_utf8(stream)
    # gRPC's core logs the weather of its connections to standard error, which belongs to our own sentences.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code. Writes errors to standard error; raises nothing."""
    as_json = "--json" in arguments
    try:
        code = build_app(arguments)(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
        return code if isinstance(code, int) else ExitCode.OK
    except Failure as failure:
        failure.report(as_json)
        return failure.exit_code
    except UsageFailure as error:
        return _misused(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`headrace tail | head`): nothing is wrong, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except Exception as error:  # noqa: BLE001 - the last resort: a sentence that names the place, never a traceback
        Failure(_defect(error)).report(as_json)
        return ExitCode.FAILED


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the application. `arguments` decide which of the services' verbs has to be loaded."""
    app = typer.Typer(
        name=PROGRAM,
        help="Submit tasks to Headrace, watch them live, and look after queues and dead letters.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_globals)
    for part in (tasks, watching, analyze, status, verify):
        part.register(app)
    app.add_typer(dead_letters.app, name="dlq")
    app.add_typer(queues.app, name="queues")
    app.add_typer(token.app, name="token")
    server_verbs.register(app, arguments)
    return app


def _globals(
    ctx: typer.Context,
    namespace: NamespaceOption = None,
    producer: ProducerOption = None,
    status: StatusOption = None,
    tls: TlsOption = None,
    tls_ca: CaOption = None,
    client_cert: CertOption = None,
    client_key: KeyOption = None,
    token_file: TokenOption = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Submit tasks to Headrace, watch them live, and look after queues and dead letters.

    Addresses come from HEADRACE_PRODUCER_ADDRESS and HEADRACE_STATUS_ADDRESS unless they are given here, certificates
    from HEADRACE_TLS_CA_FILE, HEADRACE_CLIENT_CERT_FILE and HEADRACE_CLIENT_KEY_FILE, a token from HEADRACE_TOKEN or
    HEADRACE_TOKEN_FILE.
    """
    ctx.obj = Target(namespace, producer, status, tls, tls_ca, client_cert, client_key, token_file)
    if version:
        sys.stdout.write(f"headrace {__version__}\n")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")
        raise typer.Exit


def _misused(error: Exception, as_json: bool) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # its text is the help of a group that was named alone
        sys.stdout.write(f"{error}\n")
        return ExitCode.OK
    usage_failure(_sentence(error)).report(as_json)
    return ExitCode.USAGE


def _sentence(error: Exception) -> str:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    if context is None:
        return str(text)
    if "unexpected extra argument" in text and "({" in text:  # what everybody tries first
        return f"a payload goes after --payload: {context.command_path} KIND --payload '{{…}}'"
    return f"{text.rstrip('.')}. Try: {context.command_path} --help"


def _defect(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"this is a defect: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"


def _as_utf8(stream: TextIO) -> None:
    # JSON is UTF-8 whatever the terminal's locale says; a character that a terminal cannot show must not end a watch.
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="replace")
