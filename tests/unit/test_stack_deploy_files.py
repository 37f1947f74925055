"""The files for Docker and for setting up: what they name exists."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace_core.settings.environment import VARIABLES

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
LOCKS = ROOT / "deploy" / "setup" / "locks"
SERVICES = ("producer", "status", "consumer")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


def test_compose_starts_the_services_that_exist(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"postgres", "nats", "prepare", *SERVICES}
    for name in SERVICES:
        assert compose["services"][name]["command"] == [name]
        assert (ROOT / name).is_dir()


def test_compose_sets_only_variables_that_services_know(compose: dict[str, Any]) -> None:
    for name in ("prepare", *SERVICES):
        assert set(compose["services"][name]["environment"]) <= set(VARIABLES)


def test_compose_waits_for_services_that_it_defines(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        context = service.get("build", {}).get("context")
        assert context is None or (ROOT / "deploy" / "compose" / context).resolve() == ROOT


def test_compose_publishes_on_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_prepares_with_verbs_of_the_command_line(compose: dict[str, Any]) -> None:
    from headrace_core.cli import db, topology  # noqa: PLC0415

    verbs = {"db": db.app, "topology": topology.app}
    (script,) = compose["services"]["prepare"]["command"]
    for command in script.split("&&"):
        program, group, verb = shlex.split(command)
        assert program == "headrace"
        names = {info.name or getattr(info.callback, "__name__", "") for info in verbs[group].registered_commands}
        assert verb in names


def test_the_image_copies_what_exists_and_is_not_ignored() -> None:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    kept = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for path in line.split()]
    assert copied
    for path in copied:
        assert (ROOT / path).exists()
        assert path.rstrip("/") in kept
    for lock in re.findall(r"-r locks/(\S+?\.lock)", text):
        assert (LOCKS / lock).exists()


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert users[-1] != ("0", "0")


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.lock")), ids=lambda path: path.name)
def test_locks_have_hashes_and_no_addresses(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, re.MULTILINE)
    packages = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in package for package in packages)


def test_ci_runs_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = re.findall(r"^make ([^\n]*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert called
    for words in called:
        assert {word for word in shlex.split(words) if "=" not in word} <= targets
