"""The pytest plugin as a user has it: the page about it runs, and without the server extra it says what to install."""

import re
from pathlib import Path

import pytest

from tests.fixtures.installed import REPOSITORY, run_pytest

PAGE = REPOSITORY / "docs" / "testing-handlers.md"
BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```\w", re.MULTILINE)


def lay_page(folder: Path) -> list[str]:
    """Write the files of the page into `folder`."""
    text = PAGE.read_text(encoding="utf-8")
    files = BLOCK.findall(text)
    assert len(files) == len(ANY_BLOCK.findall(text)), "every block of the page begins with the name of its file"
    for name, content in files:
        (folder / name).write_text(content, encoding="utf-8")
    return [name for name, _ in files]


@pytest.mark.timeout(240)
async def test_every_file_of_the_page_about_testing_runs(tmp_path: Path) -> None:
    names = lay_page(tmp_path)
    assert names == ["handlers.py", "test_handlers.py", "pyproject.toml", "test_stack.py"]
    tests = sum((tmp_path / name).read_text().count("def test_") for name in names)
    code, output = await run_pytest(tmp_path, within=200)
    assert code == 0, output
    assert f"{tests} passed" in output


CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def headrace_handlers():
    return ["mine"]

@pytest.fixture(scope="session")
def headrace_environment():
    return {"GREETING": "good day"}
"""
MINE = """
import os
from headrace import handler

@handler("greet")
async def greet(ctx, input):
    return os.environ["GREETING"]
"""
STRICT = """
import pytest

@pytest.mark.asyncio
async def test_client(headrace_client):
    task = await headrace_client.submit("greet", {})
    assert await headrace_client.result(task.id, timeout=30) == "good day"

def test_broken(headrace_stack):
    headrace_stack.run(headrace_stack.kill_consumer("consumer-1"))

def test_whole(headrace_stack):
    assert headrace_stack.consumers == ["consumer-1"]
    assert headrace_stack.run(headrace_stack.kill_consumer()) == "consumer-1"
"""


@pytest.mark.timeout(180)
async def test_the_fixtures_can_be_overridden_work_in_strict_mode_and_heal_after_each_test(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = strict\nheadrace_consumers = 1\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "test_strict.py").write_text(STRICT)
    code, output = await run_pytest(tmp_path)
    assert code == 0, output


@pytest.mark.parametrize("missing", ["psycopg", "nats"])
async def test_without_the_server_extra_the_stack_says_in_one_sentence_what_to_install(
    tmp_path: Path, missing: str
) -> None:
    (tmp_path / "conftest.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
    (tmp_path / "test_it.py").write_text("def test_it(headrace_stack): ...\n")
    code, output = await run_pytest(tmp_path, "-q")
    assert code == 1
    sentence = f"headrace_stack needs the server extra ({missing} is missing): pip install 'headrace[server,stack]'"
    assert f"\n{sentence}\n" in output
    assert "Traceback" not in output


async def test_without_pytest_asyncio_the_client_names_the_other_one(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(headrace_client): ...\n")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pytest_asyncio'] = None\n")
    only_ours = ("-q", "-p", "headrace.testing.plugin")
    code, output = await run_pytest(tmp_path, *only_ours, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert code == 1
    assert "headrace_client needs pytest-asyncio; without it use headrace_sync_client" in output


async def test_a_run_that_asks_for_nothing_starts_nothing(tmp_path: Path) -> None:
    program = "import sys\ndef test_it():\n    assert not {'grpc', 'pydantic', 'psycopg', 'nats'} & set(sys.modules)\n"
    (tmp_path / "test_it.py").write_text(program)
    code, output = await run_pytest(tmp_path, "-q")
    assert code == 0, output
