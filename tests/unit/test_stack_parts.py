"""The small parts of the local stack: ports, the folder's lock, delays, the log, what is printed."""

import asyncio
import os
import signal
import socket
import stat
import sys
from io import StringIO
from pathlib import Path

import pytest

from headrace_core.stack.child import describe_exit
from headrace_core.stack.demo import split_questions
from headrace_core.stack.errors import StackError
from headrace_core.stack.folder import FolderLock
from headrace_core.stack.keeping import Backoff
from headrace_core.stack.logs import StackLog
from headrace_core.stack.ports import free_port, require_free


def test_a_port_in_use_is_one_sentence_with_its_option() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=rf"^port {port} \(--http-port\) cannot be used: Address already in use"):
            require_free(port, "--http-port")


def test_a_free_port_and_port_zero_are_fine() -> None:
    require_free(0, "--http-port")
    require_free(free_port(), "--http-port")


async def test_a_folder_has_one_stack_at_a_time(tmp_path: Path) -> None:
    lock = await FolderLock.take(tmp_path / "new" / "folder")
    assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700
    with pytest.raises(StackError, match=rf"in use by another Headrace stack \(process {os.getpid()}\)"):
        await FolderLock.take(tmp_path / "new" / "folder")
    lock.release()
    lock.release()
    (await FolderLock.take(tmp_path / "new" / "folder")).release()


async def test_the_lock_waits_for_the_servers_of_a_dead_stack(tmp_path: Path) -> None:
    lock = await FolderLock.take(tmp_path)
    survivor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import signal; signal.pause()", pass_fds=(lock.fd,)
    )
    lock.release()
    (tmp_path / "lock").write_text(str(2**22 + 1))  # no process has this id: the maximum is 2^22
    waiting = asyncio.create_task(FolderLock.take(tmp_path), name="take")
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    survivor.kill()
    await survivor.wait()
    async with asyncio.timeout(5):
        (await waiting).release()


async def test_an_unusable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match=r"^cannot write to the data folder .*/file"):
        await FolderLock.take(tmp_path / "file")


def test_delays_double_up_to_a_limit_and_begin_again() -> None:
    backoff = Backoff(1, 5)
    assert [backoff.take() for _ in range(4)] == [1, 2, 4, 5]
    backoff.reset()
    assert backoff.take() == 1


def test_the_log_goes_to_both_and_survives_its_reader(tmp_path: Path) -> None:
    echo = StringIO()
    log = StackLog(tmp_path / "log", echo)
    log.line("nats", "one")
    echo.close()
    log.line("nats", "two")
    log.close()
    log.line("nats", "three")
    text = (tmp_path / "log").read_text()
    assert "nats       | one\n" in text
    assert "log stream is gone" in text
    assert "two" in text
    assert "three" not in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_does_not_stop_the_log() -> None:
    echo = StringIO()
    log = StackLog(Path("/dev/full"), echo)
    log.line("postgres", "one")
    log.line("postgres", "two")
    log.close()
    assert echo.getvalue().count("\n") == 2


def test_the_log_is_bounded(tmp_path: Path) -> None:
    log = StackLog(tmp_path / "log", max_bytes=100)
    for number in range(20):
        log.line("part", f"line {number}")
    log.close()
    sizes = [(tmp_path / name).stat().st_size for name in ("log", "log.1")]
    assert max(sizes) < 200
    assert "line 19" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("code", "text"), [(3, "exit code 3"), (-signal.SIGKILL, "killed by SIGKILL"), (-250, "killed by signal 250")]
)
def test_an_exit_is_said_in_words(code: int, text: str) -> None:
    assert describe_exit(code) == text


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("", []),
        ("Who? When?", ["Who?", "When?"]),
        ("谁接受任务？什么时候？", ["谁接受任务？", "什么时候？"]),
        ("the cost", ["the cost"]),
    ],
)
def test_questions_end_with_their_marks(text: str, questions: list[str]) -> None:
    assert split_questions(text) == questions
