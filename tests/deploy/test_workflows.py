""".github/workflows: they call make targets, hold few rights, name no host, and end by themselves."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import ROOT, tool

FOLDER = ROOT / ".github"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yaml"))
ACTIONS = sorted((FOLDER / "actions").glob("*/action.yaml"))
# The rights that a job may hold, and why: reading the checkout, the identity for signatures, the release's page.
RIGHTS = {"contents": {"read"}, "id-token": {"write"}}
RELEASING = {"contents": {"read", "write"}}


def load(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    # YAML 1.1 reads the key `on` as true.
    return {("on" if key is True else key): value for key, value in document.items()}


def workflow(name: str) -> dict[str, Any]:
    return load(FOLDER / "workflows" / f"{name}.yaml")


def jobs(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return list(load(path)["jobs"].items())


def steps() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in WORKFLOWS:
        for _, job in jobs(path):
            yield from ((path, step) for step in job.get("steps", ()))
    for path in ACTIONS:
        yield from ((path, step) for step in load(path)["runs"]["steps"])


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_workflows_are_these() -> None:
    assert {path.stem for path in WORKFLOWS} == {"check", "image", "chart", "release", "deploy"}


def test_actionlint_finds_nothing() -> None:
    done = subprocess.run(
        [tool("actionlint"), "-no-color", "-shellcheck=", "-pyflakes=", *WORKFLOWS],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_step_calls_make_targets_that_exist() -> None:
    known = targets()
    called = [(path.name, step["run"]) for path, step in steps() if "run" in step]
    assert called
    for where, run in called:
        program, *words = shlex.split(run)
        assert program == "make", where
        # No expression either: what comes from outside comes as a variable of the environment.
        assert all(re.fullmatch(r"[a-z-]+|[A-Z_]+=\w+", word) for word in words), (where, run)
        wanted = {word for word in words if "=" not in word}
        assert wanted <= known, f"{where}: the Makefile lacks {', '.join(sorted(wanted - known))}"


def test_ci_itself_calls_targets_that_exist() -> None:
    called = re.findall(r"^make ([^\n]*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert called
    for words in called:
        assert {word for word in shlex.split(words) if "=" not in word} <= targets()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_hold_no_right_that_they_do_not_need(path: Path) -> None:
    assert load(path)["permissions"] == {}
    for name, job in jobs(path):
        assert job["permissions"], name
        releases = (path.stem, name) == ("release", "publish")
        for right, level in job["permissions"].items():
            assert level in (RELEASING if releases else RIGHTS).get(right, set()), (name, right)


def test_a_caller_gives_no_other_rights_than_the_called_use() -> None:
    for path in WORKFLOWS:
        for name, job in jobs(path):
            if "uses" in job:
                called = workflow(Path(job["uses"]).stem)["jobs"].values()
                used = {right: level for one in called for right, level in one["permissions"].items()}
                assert job["permissions"] == used, (path.name, name)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_end_by_themselves_and_do_not_pile_up(path: Path) -> None:
    assert load(path)["concurrency"]["group"]
    assert "cancel-in-progress" in load(path)["concurrency"]
    for name, job in jobs(path):
        assert "uses" in job or 0 < job["timeout-minutes"] <= 120, name
        assert "uses" in job or re.fullmatch(r"ubuntu-\d+\.\d+", job["runs-on"]), name


def test_groups_of_a_caller_and_of_what_it_calls_differ() -> None:
    # One group for both would make the called wait for its caller.
    groups = [load(path)["concurrency"]["group"].split("${{")[0] for path in WORKFLOWS]
    assert len(set(groups)) == len(groups)


def test_actions_are_fixed_by_their_commit() -> None:
    used = [(path.name, step["uses"]) for path, step in steps() if "uses" in step]
    versions: dict[str, set[str]] = {}
    for where, action in used:
        if action.startswith("./"):
            assert (ROOT / action / "action.yaml").is_file(), where
            continue
        name, _, commit = action.partition("@")
        assert re.fullmatch(r"[0-9a-f]{40}", commit), (where, action)
        versions.setdefault(name, set()).add(commit)
    assert all(len(commits) == 1 for commits in versions.values()), versions
    for path in (*WORKFLOWS, *ACTIONS):
        for line in re.findall(r"uses: (?!\./).*", path.read_text()):
            assert re.search(r" # v\d+\.\d+\.\d+$", line), (path.name, line)


def test_checkouts_keep_no_credentials_and_tests_get_the_history() -> None:
    for path in WORKFLOWS:
        for name, job in jobs(path):
            runs = [step["run"] for step in job.get("steps", ()) if "run" in step]
            for step in job.get("steps", ()):
                if str(step.get("uses", "")).startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False, name
                    # Tests of upgrades start what was released before.
                    tested = {"make check", "make chart-test"} & set(runs)
                    assert not tested or step["with"]["fetch-depth"] == 0, name


def test_what_needs_go_or_python_sets_them_up() -> None:
    for path in WORKFLOWS:
        for name, job in jobs(path):
            words = {word for step in job.get("steps", ()) for word in str(step.get("run", "")).split()}
            if words & {"check", "chart-tools", "chart-test", "chart-package", "deploy"}:
                assert "./.github/actions/tools" in [step.get("uses") for step in job["steps"]], (path.name, name)


def test_no_host_and_no_secret_stands_in_a_file() -> None:
    for path in (*WORKFLOWS, *ACTIONS):
        text = re.sub(r"^\s*- uses: .*$", "", path.read_text(), flags=re.MULTILINE)
        assert not re.search(r"[\w-]+\.(?:io|com|org|net|dev|cloud)\b", text), path.name
        for line in text.splitlines():
            if re.match(r"\s*(password|username|registry|KUBECONFIG_CONTENT|VALUES_CONTENT|REGISTRY_\w+):.", line):
                assert re.search(r"\$\{\{ (secrets|vars)\.\w+ \}\}$", line), line


def test_every_supported_python_is_checked() -> None:
    versions = workflow("check")["jobs"]["check"]["strategy"]["matrix"]["python"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert versions[0] == oldest[1]
    image = re.search(r"PYTHON_IMAGE=python:(\d+\.\d+)", (ROOT / "deploy" / "docker" / "Dockerfile").read_text())
    assert image is not None
    assert image[1] in versions


def test_nothing_is_published_or_deployed_that_was_not_checked() -> None:
    for name in ("release", "deploy"):
        document = workflow(name)["jobs"]
        for job in document:
            assert job in {"check", "agreement"} or "check" in _before(document, job), (name, job)
    assert workflow("check")["on"]["push"]["branches-ignore"] == ["main"]
    assert workflow("deploy")["on"]["push"] == {"branches": ["main"]}
    assert workflow("release")["on"] == {"push": {"tags": ["v*"]}}


def _before(document: dict[str, Any], job: str) -> set[str]:
    needs = document[job].get("needs", [])
    direct = {needs} if isinstance(needs, str) else set(needs)
    return direct.union(*(_before(document, one) for one in direct))


def test_production_gets_exactly_the_image_that_was_built_and_is_tried() -> None:
    job = workflow("deploy")["jobs"]["deploy"]
    assert job["environment"] == "production"
    assert job["env"]["DIGEST"] == "${{ needs.image.outputs.digest }}"
    assert job["env"]["VERSION"] == workflow("deploy")["jobs"]["image"]["with"]["version"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make deploy", "make deploy-test"]
    values = [step["env"]["VALUES"] for step in job["steps"] if step.get("run") == "make deploy"]
    assert (ROOT / values[0]).is_file()
    built = workflow("image")["jobs"]["publish"]
    assert built["env"]["IMAGE"] == job["env"]["IMAGE"]
    # Signed after it was pushed, in the job that pushed it.
    assert [step["run"] for step in built["steps"] if "run" in step] == ["make image PUSH=1", "make image-sign"]


def test_variables_of_the_steps_are_those_that_the_scripts_read() -> None:
    text = "".join(path.read_text() for path in (ROOT / "deploy" / "delivery").glob("*.sh"))
    read = set(re.findall(r"\$\{!?([A-Z_]+)", text)) | set(
        re.findall(r"^for name in ([A-Z_ ]+);", text, re.M)[0].split()
    )
    read |= set(re.findall(r"^variable ([A-Z_]+)", text, re.MULTILINE)) | {"GH_TOKEN"}
    for path in WORKFLOWS:
        for name, job in jobs(path):
            given = set(job.get("env", {})).union(*(step.get("env", {}) for step in job.get("steps", ())))
            assert given <= read, (path.name, name, given - read)
