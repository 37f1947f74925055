"""The image: what its Dockerfile says, and what its steps make, run as it would be in a container."""

from __future__ import annotations

import ast
import asyncio
import configparser
import importlib.metadata
import json
import marshal
import os
import re
import shutil
import signal
import subprocess
import tomllib
import types
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.deploy.dockerfile import Dockerfile, copied, ignored, parsed
from tests.deploy.laid_image import LaidImage, demand_namespaces, lay
from tests.deploy.tools import ROOT

LOCKS = ROOT / "deploy" / "setup" / "locks"
PACKAGES = ("headrace", "headrace_core", "producer", "consumer", "status")
SERVICES = ("producer", "consumer", "status")


@pytest.fixture(scope="module")
def image() -> Dockerfile:
    return parsed()


@pytest.fixture(scope="module")
def laid(image: Dockerfile, tmp_path_factory: pytest.TempPathFactory) -> LaidImage:
    return lay(image, tmp_path_factory.mktemp("laid"))


# -- what the Dockerfile says ------------------------------------------------------------------------------------------
def test_it_copies_what_exists_and_is_not_ignored(image: Dockerfile) -> None:
    sources = {source for stage in image.stages for source in copied(stage)}
    assert set(PACKAGES) <= sources
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        for file in [path] if path.is_file() else path.rglob("*"):
            name = str(file.relative_to(ROOT))
            assert ignored(name) == ("__pycache__" in name), name


@pytest.mark.parametrize("name", ["tests/conftest.py", ".git/HEAD", "bench/__main__.py", "deploy/setup/locks/all.lock"])
def test_the_build_sees_nothing_that_the_image_is_not_made_of(name: str) -> None:
    assert ignored(name)


def test_every_library_comes_from_a_lock_with_its_hash(image: Dockerfile) -> None:
    locks = set()
    for stage in image.stages:
        for step in stage.steps():
            for command in re.findall(r"pip (?:--python \S+ )?(?:install|wheel)[^&;]*", step):
                assert "--require-hashes" in command or "--no-index" in command, command
                locks |= set(re.findall(r"-r (locks/\S+\.lock)", command))
        assert {f"locks/{Path(source).name}" for source in copied(stage) if source.endswith(".lock")} <= locks
    assert locks == {"locks/server.lock", "locks/model.lock", "locks/build.lock"}
    assert all((LOCKS / Path(lock).name).is_file() for lock in locks)


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.lock")), ids=lambda path: path.name)
def test_locks_have_hashes_and_no_addresses(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, re.MULTILINE)
    packages = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in package for package in packages)


def test_the_base_has_an_exact_version_and_can_be_given_by_digest(image: Dockerfile) -> None:
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", image.arguments["PYTHON_IMAGE"])
    stages = {stage.name for stage in image.stages}
    assert all(stage.base == "${PYTHON_IMAGE}" or stage.base in stages for stage in image.stages)


def test_what_runs_is_an_ordinary_user_with_full_commands(image: Dockerfile) -> None:
    # Numeric: Kubernetes checks runAsNonRoot by it. No entrypoint: the chart and Compose give whole commands.
    assert image.runs.last("USER") == "10001:10001"
    assert image.runs.last("STOPSIGNAL") == "SIGTERM"
    assert not image.runs.all("ENTRYPOINT")
    assert not image.runs.all("HEALTHCHECK")
    assert json.loads(image.runs.last("CMD"))[0] == "headrace"
    assert {"PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"} <= set(image.runs.last("ENV").split())


def test_it_is_labelled_with_its_version_its_commit_and_its_licence(image: Dockerfile) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', image.runs.last("LABEL")))
    assert set(labels) == {"title", "description", "licenses", "version", "revision", "source"}
    assert labels["licenses"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    for name in ("version", "revision", "source"):
        assert labels[name] == f"${{{name.upper()}}}"
        assert any(line.startswith(f"{name.upper()}=") for line in image.runs.all("ARG"))


def test_pip_is_taken_away_and_the_standard_library_compiled(image: Dockerfile, tmp_path: Path) -> None:
    library = tmp_path / "usr" / "local" / "lib" / "python3.99"
    for name in ("site-packages/pip/__init__.py", "site-packages/pip-1.0.dist-info/RECORD", "ensurepip/__init__.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).touch()
    (library / "json").mkdir()
    (library / "json" / "__init__.py").write_text("VALUE = 1\n")
    for name in ("usr/local/bin/pip", "usr/local/bin/pip3", "usr/local/bin/python", "etc/passwd", "etc/group"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (step,) = image.runs.steps()
    step = step.replace("/usr/local", f"{tmp_path}/usr/local").replace("/etc/", f"{tmp_path}/etc/")
    subprocess.run(["/bin/sh", "-euc", step.replace("python -m", "python3 -m")], check=True)
    assert not [path for path in tmp_path.rglob("*") if "pip" in path.name]
    assert (tmp_path / "usr/local/bin/python").exists()
    assert list((library / "json" / "__pycache__").glob("*.pyc"))
    assert (tmp_path / "etc/passwd").read_text().startswith("headrace:x:10001:10001:")


# -- what the steps make -----------------------------------------------------------------------------------------------
def test_the_wheel_has_every_file_of_the_packages(laid: LaidImage) -> None:
    with zipfile.ZipFile(laid.wheel) as wheel:
        names = set(wheel.namelist())
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert {name for name in wanted if name.endswith(".sql")}
    assert "headrace/service_config.json" in wanted
    assert wanted <= names, sorted(wanted - names)
    assert not {name for name in names if name.startswith(("tests/", "bench/", "deploy/"))}


def test_the_wheel_has_the_entry_points_of_pyproject(laid: LaidImage) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(laid.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        points = configparser.ConfigParser(delimiters=["="])
        points.read_string(wheel.read(name).decode())
    assert dict(points["console_scripts"]) == project["scripts"]
    assert dict(points["headrace.cli"]) == project["entry-points"]["headrace.cli"]


def test_every_module_is_compiled_for_where_it_will_be(laid: LaidImage) -> None:
    modules = [path for package in PACKAGES for path in (laid.packages / package).rglob("*.py")]
    assert len(modules) > 200
    for module in modules:
        (compiled,) = (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc")
        content = compiled.read_bytes()
        # Bit 0: by hash; bit 1: compared with the source. Unchecked, since times differ from build to build.
        assert int.from_bytes(content[4:8], "little") == 0b01, compiled
        code = marshal.loads(content[16:])
        assert isinstance(code, types.CodeType)
        assert code.co_filename == str(module)


def test_the_services_import_no_library_but_those_of_the_locks(laid: LaidImage) -> None:
    text = (LOCKS / "server.lock").read_text() + (LOCKS / "model.lock").read_text()
    locked = {_normal(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}
    modules = [path for package in PACKAGES for path in (laid.packages / package).rglob("*.py")]
    # The local stack and the test kit are for machines with the tests' libraries.
    imported = {name for path in modules if not {"stack", "testing"} & set(path.parts) for name in _imports(path)}
    owners = importlib.metadata.packages_distributions()
    used = {_normal(owner) for name in imported for owner in owners.get(name, [])}
    assert {"grpcio", "psycopg", "nats-py"} <= used
    assert used - locked == {"headrace"}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return {name.split(".")[0] for name in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- how it runs -------------------------------------------------------------------------------------------------------
class Started:
    """A service that runs from the image; `lines` is what it has logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def serving(self) -> dict[str, str]:
        """Its line `serving`, with its addresses."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode())
            if '"service.serving"' in self.lines[-1]:
                parsed_line = json.loads(self.lines[-1])
                assert isinstance(parsed_line, dict)
                return parsed_line
        raise AssertionError("".join(self.lines))

    async def end(self) -> int | None:
        """SIGTERM, the rest of its log, its exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            output, _ = await self.process.communicate()
        self.lines += output.decode().splitlines()
        return self.process.returncode


@pytest.fixture
async def started(laid: LaidImage) -> AsyncIterator[list[Started]]:
    demand_namespaces()
    services: list[Started] = []
    yield services
    for service in services:
        if service.process.returncode is None:
            service.process.kill()
            await service.process.wait()


async def test_what_it_runs_in_is_what_a_pod_gets(laid: LaidImage) -> None:
    demand_namespaces()
    # Of a checkout below /tmp only the name is there, in the container's own /tmp.
    checkout = [] if ROOT.is_relative_to("/tmp") else [str(ROOT)]
    tried = (
        "import os, sys\n"
        f"places = ['/', os.getcwd(), {str(laid.packages)!r}, *{checkout!r}, '/tmp']\n"
        "print(os.getuid(), *[place for place in places if os.path.isdir(place) and os.statvfs(place).f_flag & 1 == 0])"
    )
    code, said = await laid.run(["python", "-c", tried], {})
    assert (code, said.split()) == (0, ["10001", "/tmp"]), said


@pytest.mark.timeout(180)
async def test_tasks_run_on_a_read_only_root_as_an_ordinary_user(
    laid: LaidImage, started: list[Started], empty_database_url: str, nats_url: str
) -> None:
    database, nats = {"HEADRACE_DATABASE_URL": empty_database_url}, {"HEADRACE_NATS_URL": nats_url}
    shutil.copyfile(ROOT / "README.md", laid.working_folder / "document.txt")
    before = _files(laid.root)
    for command, variables in (["headrace", "db", "migrate"], database), (["headrace", "topology", "apply"], nats):
        code, said = await laid.run(command, variables)
        assert code == 0, said
    addresses = {}
    for name in SERVICES:
        service = Started(await laid.start(["python", "-m", name], _listening(name) | database | nats))
        started.append(service)
        async with asyncio.timeout(60):
            addresses[name] = await service.serving()
    where = {f"HEADRACE_{name.upper()}_ADDRESS": addresses[name]["grpc"] for name in ("producer", "status")}
    for words in ("submit echo --watch --json", "analyze document.txt --json"):
        command = ["headrace", *words.split()]
        code, said = await laid.run(command, where)
        assert code == 0, said
    assert [await service.end() for service in started] == [0, 0, 0]
    complaints = [line for service in started for line in service.lines if re.search(r"Read-only|\"error\"", line)]
    assert not complaints
    assert _files(laid.root) == before


def _listening(name: str) -> dict[str, str]:
    ports = ["HEADRACE_LISTEN", "HEADRACE_OPS_LISTEN", *(["HEADRACE_HTTP_LISTEN"] if name == "status" else [])]
    return dict.fromkeys(ports, "127.0.0.1:0")


def _files(folder: Path) -> set[Path]:
    return {Path(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files)}
