"""deploy/compose: what it names exists, and every container is as shut as it can be."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace_core.settings.environment import VARIABLES, load_settings
from tests.deploy.dockerfile import parsed
from tests.deploy.tools import ROOT

FOLDER = ROOT / "deploy" / "compose"
SERVICES = ("producer", "status", "consumer")
STEPS = ("migrate", "topology")
OURS = (*SERVICES, *STEPS)
OTHERS = ("postgres", "nats", "prometheus", "grafana")
# Postgres's own start as root hands its folder to its user, for which it needs rights that the others give up.
NOT_READ_ONLY = {"postgres"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def test_it_starts_the_services_that_exist(services: dict[str, Any]) -> None:
    assert set(services) == {*OURS, *OTHERS}
    for name in SERVICES:
        assert services[name]["command"] == ["python", "-m", name]
        assert (ROOT / name / "__main__.py").is_file()


def test_no_container_of_ours_writes_or_holds_a_right(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name not in NOT_READ_ONLY:
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["tmpfs"] == ["/tmp"], name


def test_commands_need_no_shell(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert "entrypoint" not in service, name
        command = service.get("command", [])
        assert isinstance(command, list), name
        assert not {"sh", "bash", "-c"} & set(command), name


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_verbs_of_the_command_line_and_wait_for_their_server(services: dict[str, Any], name: str) -> None:
    from headrace_core.cli import db, topology  # noqa: PLC0415 - needs the server's libraries

    program, group, verb, *options = services[name]["command"]
    assert program == "headrace"
    commands = {
        info.name or getattr(info.callback, "__name__", ""): info
        for info in {"db": db.app, "topology": topology.app}[group].registered_commands
    }
    callback = commands[verb].callback
    assert callback is not None
    assert options[0] == "--wait"
    assert "wait" in callback.__annotations__
    assert services[name]["restart"] == "on-failure"


@pytest.mark.parametrize("name", OURS)
def test_variables_are_known_and_valid(services: dict[str, Any], name: str) -> None:
    environment = {key: _substituted(value) for key, value in services[name]["environment"].items()}
    assert set(environment) <= set(VARIABLES)
    load_settings(environment, default_listen="127.0.0.1:0", cwd=Path("/nowhere"))


def _substituted(value: str) -> str:
    """A value with the defaults of its variables in place."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_the_services_start_after_schema_and_streams(services: dict[str, Any]) -> None:
    for name in SERVICES:
        waits = services[name]["depends_on"]
        assert {one: waits[one]["condition"] for one in waits} == dict.fromkeys(STEPS, "service_completed_successfully")
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["topology"]["depends_on"] == {"nats": {"condition": "service_healthy"}}
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)


def test_ports_are_published_on_this_machine_only_and_are_listened_on(services: dict[str, Any]) -> None:
    published = list(_published(services))
    assert len(published) == len({port for _, port, _ in published})
    for name, _, inner in published:
        if name in SERVICES:
            listens = [value for key, value in services[name]["environment"].items() if key.endswith("LISTEN")]
            assert f"0.0.0.0:{inner}" in listens


def _published(services: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, service in services.items():
        for port in service.get("ports", ()):
            address, outer, inner = port.split(":")
            assert address == "127.0.0.1", name
            yield name, outer, inner


def test_health_is_asked_for_without_a_shell_or_curl(services: dict[str, Any]) -> None:
    for name in (*SERVICES, "postgres", "nats"):
        test = services[name]["healthcheck"]["test"]
        assert test[0] == "CMD", name
        assert test[1] != "curl"
    for name in SERVICES:
        program, option, code = services[name]["healthcheck"]["test"][1:]
        assert (program, option) == ("python", "-c")
        compile(code, "healthcheck", "exec")
        port = services[name]["environment"]["HEADRACE_OPS_LISTEN"].split(":")[1]
        assert f"127.0.0.1:{port}/readyz" in code


def test_a_service_has_time_for_its_grace_period(services: dict[str, Any]) -> None:
    grace = load_settings({}, default_listen="127.0.0.1:0", cwd=Path("/nowhere")).grace_seconds
    for name in SERVICES:
        assert float(services[name]["stop_grace_period"].removesuffix("s")) >= grace + 15


def test_images_have_fixed_versions(services: dict[str, Any]) -> None:
    for name in OTHERS:
        _, _, tag = services[name]["image"].partition(":")
        assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-[a-z]+)?", tag), name
        assert "build" not in services[name]


def test_ours_is_built_from_the_repository(services: dict[str, Any]) -> None:
    for name in OURS:
        build = services[name]["build"]
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert services[name]["image"] == "${HEADRACE_IMAGE:-headrace}"
        # No rights and a folder that only root may write to: the image's own user must do.
        assert "user" not in services[name]
    assert parsed().runs.last("USER") == "10001:10001"


def test_what_is_mounted_exists(compose: dict[str, Any], services: dict[str, Any]) -> None:
    named = set()
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source, target, *mode = volume.split(":")
            assert target.startswith("/"), name
            if source.startswith("."):
                assert (FOLDER / source).exists(), f"{name}: {source}"
                assert mode == ["ro"], name
            else:
                named.add(source)
    assert named == set(compose["volumes"])


def test_every_variable_of_the_file_has_a_default(compose: dict[str, Any]) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    known = {"HEADRACE_IMAGE", "HEADRACE_HANDLERS", "POSTGRES_PASSWORD", "GRAFANA_PASSWORD"}
    assert set(re.findall(r"\$\{(\w+)", text)) == known
    for found in re.findall(r"\$\{[^}]*\}", text):
        assert ":-" in found
    assert not string.Template(re.sub(r"\$\{[^}]*\}", "", text)).get_identifiers()


def test_the_commands_of_the_head_are_right(services: dict[str, Any]) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^#   (docker compose .*)$", text, re.MULTILINE)]
    assert commands
    for command in commands:
        assert (ROOT / command[command.index("--file") + 1]).samefile(FOLDER / "compose.yaml")
        for word in command:
            if "=" in word:
                assert word.split("=")[0] in services
