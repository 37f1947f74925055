"""deploy/delivery: the commands that the scripts run, and the sentence with which they refuse."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import headrace
from tests.deploy.recording import Recorder, image_metadata, said
from tests.deploy.tools import ROOT, tool

CHART = ROOT / "deploy" / "helm" / "headrace"
SCRIPTS = sorted((ROOT / "deploy" / "delivery").glob("*.sh"))
SOURCED = {"common.sh", "cluster.sh"}
IMAGE = "registry.example/team/headrace"
DIGEST = "sha256:" + "ab" * 32


# What helm would read: the values of the environment, who may read them, the cluster.
SHOWS_ITS_FILES = """
for word; do case "$word" in /tmp/*values.yaml) cat "$word"; stat -c %a "$word";; esac; done
echo "$KUBECONFIG"; cat "$KUBECONFIG"; echo "${KUBECONFIG_CONTENT-unset}"
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    made = Recorder(tmp_path / "programs")
    for name in ("docker", "cosign", "helm", "gh", "sudo", "apt-get"):
        made.program(name)
    made.dist.mkdir()
    return made


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def option(call: list[str], name: str) -> list[str]:
    """The values of an option that may be given several times."""
    pairs = itertools.pairwise(call)
    return [value for word, value in pairs if word == name] + [
        word.partition("=")[2] for word in call if word.startswith(f"{name}=")
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_say_what_they_are_for(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert script.stat().st_mode & 0o100 == (0 if script.name in SOURCED else 0o100)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if script.name not in SOURCED:
        assert lines[0] == "#!/usr/bin/env bash"
        assert "set -euo pipefail" in lines
        assert lines[1].startswith("# ")


# -- image -------------------------------------------------------------------------------------------------------------
def test_an_image_for_this_machine_is_built_and_loaded(recorder: Recorder) -> None:
    assert recorder.run("image.sh").returncode == 0
    (call,) = recorder.calls()
    assert call[:3] == ["docker", "buildx", "build"]
    assert (ROOT / option(call, "--file")[0]).is_file()
    assert option(call, "--tag") == [f"headrace:{headrace.__version__}", "headrace:latest"]
    assert call[-2:] == ["--load", "."]
    assert not {"--push", "--output"} & set(call)
    arguments = dict(pair.split("=", 1) for pair in option(call, "--build-arg"))
    assert arguments == {
        "VERSION": headrace.__version__,
        "REVISION": git("rev-parse", "HEAD"),
        "SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct"),
    }


def test_an_image_is_pushed_with_sbom_and_provenance_and_its_digest_is_kept(recorder: Recorder, tmp_path: Path) -> None:
    recorder.program("docker", image_metadata(DIGEST, recorder.dist / "image.json"))
    given = {"IMAGE": IMAGE, "VERSION": "1.2.3", "REVISION": "abc", "SOURCE": "https://example/headrace", "MODEL": "no"}
    outputs = tmp_path / "outputs"
    done = recorder.run(
        "image.sh", PUSH="1", PYTHON_IMAGE="python@sha256:1", PLATFORMS="linux/amd64,linux/arm64",
        GITHUB_OUTPUT=str(outputs), **given,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (call,) = recorder.calls()
    assert option(call, "--tag") == [f"{IMAGE}:1.2.3"]
    assert {"--sbom=true", "--provenance=mode=max"} <= set(call)
    assert option(call, "--output") == ["type=image,push=true,rewrite-timestamp=true"]
    assert option(call, "--platform") == ["linux/amd64,linux/arm64"]
    built = dict(pair.split("=", 1) for pair in option(call, "--build-arg"))
    assert {name: built[name] for name in ("VERSION", "REVISION", "SOURCE", "MODEL", "PYTHON_IMAGE")} == {
        **{name: given[name] for name in ("VERSION", "REVISION", "SOURCE", "MODEL")},
        "PYTHON_IMAGE": "python@sha256:1",
    }
    assert done.stdout == f"{IMAGE}:1.2.3@{DIGEST}\n"
    assert (recorder.dist / "image.digest").read_text() == f"{DIGEST}\n"
    assert outputs.read_text() == f"digest={DIGEST}\n"


def test_build_arguments_are_those_of_the_dockerfile(recorder: Recorder) -> None:
    given = dict.fromkeys(("SOURCE", "MODEL", "PYTHON_IMAGE"), "x")
    recorder.run("image.sh", **given)
    (call,) = recorder.calls()
    declared = set(re.findall(r"^ARG (\w+)", (ROOT / "deploy/docker/Dockerfile").read_text(), re.MULTILINE))
    assert {pair.split("=")[0] for pair in option(call, "--build-arg")} == declared


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "image: set IMAGE: the name with its registry, since headrace alone can be pushed nowhere"),
        ({"IMAGE": IMAGE}, "image: docker buildx wrote no digest into "),
    ],
)
def test_a_push_that_cannot_be_is_refused(recorder: Recorder, variables: dict[str, str], sentence: str) -> None:
    recorder.program("docker", f"echo '{{}}' >{recorder.dist}/image.json\n")
    assert said(recorder.run("image.sh", PUSH="1", **variables)).startswith(sentence)


@pytest.mark.parametrize(("script", "plugin"), [("image.sh", "buildx"), ("compose-test.sh", "compose")])
def test_a_docker_without_the_plugin_is_named(recorder: Recorder, script: str, plugin: str) -> None:
    recorder.program("docker", "exit 1\n")
    assert f"docker has no plugin {plugin}" in said(recorder.run(script))
    assert recorder.calls() == []


# -- signatures --------------------------------------------------------------------------------------------------------
def test_what_was_pushed_is_signed_by_its_digest(recorder: Recorder) -> None:
    (recorder.dist / "image.digest").write_text(f"{DIGEST}\n")
    (recorder.dist / "chart.digest").write_text(f"{DIGEST}\n")
    assert recorder.run("sign.sh", "image", IMAGE=IMAGE).returncode == 0
    assert recorder.run("sign.sh", "chart", CHARTS="registry.example/charts").returncode == 0
    assert recorder.calls() == [
        ["cosign", "sign", "--yes", f"{IMAGE}@{DIGEST}"],
        ["cosign", "sign", "--yes", f"registry.example/charts/headrace@{DIGEST}"],
    ]


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["image"], {}, "sign: set IMAGE: the image's name with its registry, without a tag"),
        (["chart"], {}, "sign: set CHARTS: where charts are in the registry, without oci://"),
        (["image"], {"IMAGE": IMAGE}, "image.digest is missing; it is written by: make image PUSH=1"),
        ([], {}, "sign: say what to sign: image or chart"),
    ],
)
def test_nothing_else_is_signed(
    recorder: Recorder, arguments: list[str], variables: dict[str, str], sentence: str
) -> None:
    assert sentence in said(recorder.run("sign.sh", *arguments, **variables))
    assert recorder.calls() == []


# -- chart -------------------------------------------------------------------------------------------------------------
def test_the_chart_is_packed_by_the_real_helm(tmp_path: Path) -> None:
    helm = Path(tool("helm"))
    recorder = Recorder(tmp_path / "programs")
    recorder.folder.mkdir()
    (recorder.folder / "helm").symlink_to(helm)
    done = recorder.run("chart-package.sh", VERSION="1.2.3-rc.1")
    assert done.returncode == 0, done.stderr
    with tarfile.open(recorder.dist / "headrace-1.2.3-rc.1.tgz") as package:
        member = package.extractfile("headrace/Chart.yaml")
        assert member is not None
        described = yaml.safe_load(member.read())
        names = set(package.getnames())
    assert (described["version"], described["appVersion"]) == ("1.2.3-rc.1", "1.2.3-rc.1")
    assert {"headrace/values.yaml", "headrace/values-production.yaml"} <= names


def test_the_chart_is_pushed_and_its_digest_is_kept(recorder: Recorder) -> None:
    recorder.program("helm", f"echo 'Pushed: registry.example/charts/headrace:1.2.3'; echo 'Digest: {DIGEST}'\n")
    (recorder.dist / "headrace-1.2.3.tgz").touch()
    done = recorder.run("chart-push.sh", CHARTS="registry.example/charts", VERSION="1.2.3")
    assert done.returncode == 0, done.stderr
    package = str(recorder.dist / "headrace-1.2.3.tgz")
    assert recorder.calls() == [["helm", "push", package, "oci://registry.example/charts"]]
    assert (recorder.dist / "chart.digest").read_text() == f"{DIGEST}\n"


def test_a_chart_that_was_not_packed_or_not_pushed_is_named(recorder: Recorder) -> None:
    given = {"CHARTS": "registry.example/charts", "VERSION": "1.2.3"}
    assert said(recorder.run("chart-push.sh", **given)).endswith("is missing; it is made by: make chart-package")
    (recorder.dist / "headrace-1.2.3.tgz").touch()
    recorder.program("helm", "exit 1\n")
    assert recorder.run("chart-push.sh", **given).returncode == 1
    assert not (recorder.dist / "chart.digest").exists()


# -- release -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def changelog(tmp_path: Path) -> Path:
    path = tmp_path / "CHANGELOG.md"
    path.write_text(
        "# Changelog\n\n## Unreleased\n\n* new\n\n"
        f"## [{headrace.__version__}] - 2026-01-02\n\n### Added\n\n* this\n\n## 0.0.9\n\n* old\n"
    )
    return path


def test_notes_are_what_the_changelog_says_of_the_version(recorder: Recorder, changelog: Path) -> None:
    def notes(**variables: str) -> str:
        return recorder.run("release-notes.sh", CHANGELOG=str(changelog), **variables).stdout

    assert notes() == "### Added\n\n* this\n"
    assert notes(VERSION="0.0.9") == "* old\n"
    done = recorder.run("release-notes.sh", CHANGELOG=str(changelog), VERSION="0.0")
    assert said(done) == "release-notes: CHANGELOG.md says nothing of 0.0; give it a heading: ## 0.0"


def test_a_tag_that_agrees_may_be_released(recorder: Recorder, changelog: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    tag = f"v{headrace.__version__}"
    done = recorder.run("release-check.sh", TAG=tag, CHANGELOG=str(changelog), GITHUB_OUTPUT=str(outputs))
    assert done.returncode == 0, done.stderr
    assert outputs.read_text() == f"version={headrace.__version__}\n"


@pytest.mark.parametrize(
    ("key", "value", "where"), [("version", "7.7.7", "version"), ("appVersion", '"7.7.7"', "appVersion")]
)
def test_a_chart_of_another_version_is_not_released(
    recorder: Recorder, changelog: Path, tmp_path: Path, key: str, value: str, where: str
) -> None:
    text = re.sub(rf"^{key}: .*$", f"{key}: {value}", (CHART / "Chart.yaml").read_text(), flags=re.MULTILINE)
    (tmp_path / "chart").mkdir()
    (tmp_path / "chart" / "Chart.yaml").write_text(text)
    variables = {"TAG": f"v{headrace.__version__}", "CHANGELOG": str(changelog), "CHART": str(tmp_path / "chart")}
    assert said(recorder.run("release-check.sh", **variables)).startswith(
        f"release-check: {where} of Chart.yaml says 7.7.7, the tag says {headrace.__version__}"
    )


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ("", "release-check: set TAG: the tag to release, such as v"),
        ("v1", "release-check: the tag v1 is no version such as v0.1.0"),
        ("v7.7.7", f"release-check: headrace.__version__ says {headrace.__version__}, the tag says 7.7.7"),
    ],
)
def test_a_tag_that_does_not_agree_is_refused(recorder: Recorder, changelog: Path, tag: str, sentence: str) -> None:
    assert said(recorder.run("release-check.sh", TAG=tag, CHANGELOG=str(changelog))).startswith(sentence)


def test_a_release_has_the_notes_and_the_chart(recorder: Recorder, changelog: Path) -> None:
    tag = f"v{headrace.__version__}"
    package = recorder.dist / f"headrace-{headrace.__version__}.tgz"
    assert "make chart-package" in said(recorder.run("release-publish.sh", TAG=tag, CHANGELOG=str(changelog)))
    package.touch()
    assert recorder.run("release-publish.sh", TAG=tag, CHANGELOG=str(changelog)).returncode == 0
    (call,) = recorder.calls()
    assert call[:4] == ["gh", "release", "create", tag]
    assert call[-1] == str(package)
    assert "--verify-tag" in call
    assert "--prerelease" not in call
    assert Path(option(call, "--notes-file")[0]).read_text() == "### Added\n\n* this\n"


# -- deployment --------------------------------------------------------------------------------------------------------
def test_a_deployment_waits_rolls_back_and_runs_exactly_that_image(recorder: Recorder) -> None:
    values = CHART / "values-production.yaml"
    # The secrets are files that only this user reads, and that are gone afterwards.
    recorder.program("helm", SHOWS_ITS_FILES)
    done = recorder.run(
        "deploy.sh", IMAGE=IMAGE, VERSION="1.2.3", DIGEST=DIGEST, VALUES=str(values), VALUES_CONTENT="database: {}",
        KUBECONFIG_CONTENT="apiVersion: v1", RELEASE="blue", NAMESPACE="work", TMPDIR="/tmp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (call,) = recorder.calls()
    assert call[:5] == ["helm", "upgrade", "--install", "blue", str(CHART)]
    assert option(call, "--namespace") == ["work"]
    assert {"--atomic", "--create-namespace"} <= set(call)
    assert option(call, "--timeout") == ["20m"]
    assert option(call, "--set-string") == [
        f"image.repository={IMAGE}", "image.tag=1.2.3", f"image.digest={DIGEST}",
    ]  # fmt: skip
    # What only the environment knows counts more, so it comes last.
    assert option(call, "--values")[0] == str(values)
    content, mode, kubeconfig, configuration, left = done.stdout.splitlines()
    assert (content, mode, configuration, left) == ("database: {}", "600", "apiVersion: v1", "unset")
    assert not Path(kubeconfig).exists()
    assert not Path(option(call, "--values")[1]).exists()


def test_the_values_that_a_deployment_sets_are_values_of_the_chart(recorder: Recorder) -> None:
    recorder.run("deploy.sh", IMAGE=IMAGE, VERSION="1", DIGEST=DIGEST, VALUES_CONTENT="a: 1")
    (call,) = recorder.calls()
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    for pair in option(call, "--set-string"):
        place = known
        for key in pair.split("=")[0].split("."):
            assert key in place
            place = place[key]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "deploy: set IMAGE: the image's name with its registry, without a tag"),
        ({"IMAGE": IMAGE}, "deploy: set VERSION: the image's tag"),
        ({"IMAGE": IMAGE, "VERSION": "1"}, "deploy: set VALUES or VALUES_CONTENT: "),
        ({"IMAGE": IMAGE, "VERSION": "1", "VALUES": "/nowhere"}, "deploy: VALUES is /nowhere, which is no file"),
    ],
)
def test_a_deployment_without_what_it_needs_is_refused(
    recorder: Recorder, variables: dict[str, str], sentence: str
) -> None:
    assert said(recorder.run("deploy.sh", **variables)).startswith(sentence)
    assert recorder.calls() == []


def test_a_deployment_that_fails_fails(recorder: Recorder) -> None:
    recorder.program("helm", "exit 3\n")
    assert recorder.run("deploy.sh", IMAGE=IMAGE, VERSION="1", VALUES_CONTENT="a: 1").returncode == 3


def test_the_deployed_release_is_tested_and_its_log_shown(recorder: Recorder) -> None:
    assert recorder.run("deploy-test.sh").returncode == 0
    assert recorder.calls() == [
        ["helm", "test", "headrace", "--namespace", "headrace", "--logs", "--timeout", "5m"],
    ]  # fmt: skip


# -- Compose and CI ----------------------------------------------------------------------------------------------------
def test_compose_is_tried_with_real_tasks_and_taken_away(recorder: Recorder) -> None:
    assert recorder.run("compose-test.sh").returncode == 0
    up, tried, down = [call[6:] for call in recorder.calls()]
    assert all(call[:2] == ["docker", "compose"] and Path(call[5]).is_file() for call in recorder.calls())
    assert up[:2] == ["up", "--no-build"]
    assert "--wait" in up
    program = tried.index("migrate") + 1
    assert tried[program : program + 2] == ["headrace", "verify"]
    help_of_verify = subprocess.run(
        [sys.executable, "-m", "headrace.cli", "verify", "--help"], capture_output=True, text=True, check=True
    )
    for word in tried[program + 2 :]:
        assert not word.startswith("--") or f" {word} " in help_of_verify.stdout
    services = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())["services"]
    for address in (*option(tried, "--env"), option(tried, "--http")[0].replace("http://", "=")):
        host, port = address.rpartition("=")[2].split(":")
        assert any(value.endswith(f":{port}") for value in services[host]["environment"].values())
    assert down[:2] == ["down", "--volumes"]


def test_compose_that_does_not_come_up_shows_its_log_and_is_taken_away(recorder: Recorder) -> None:
    recorder.program("docker", 'case "$*" in *" up "*) exit 1;; esac\n')
    done = recorder.run("compose-test.sh")
    assert "did not become healthy" in done.stderr
    assert done.returncode == 1
    assert [call[6] for call in recorder.calls()] == ["up", "logs", "down"]


def test_ci_gets_its_programs_and_may_make_namespaces(recorder: Recorder, tmp_path: Path) -> None:
    recorder.program("id", "echo 1001\n")
    restriction = tmp_path / "restriction"
    restriction.write_text("1\n")
    path = f"{recorder.folder}:{_without_pgbouncer(tmp_path)}"
    hidden = {"PATH": path, "SBIN": str(tmp_path), "SERVERS": str(tmp_path), "APPARMOR_RESTRICTION": str(restriction)}
    done = recorder.run("ci-tools.sh", **hidden)
    assert done.returncode == 0, done.stderr
    calls = [call for call in recorder.calls() if call[0] == "sudo"]
    assert [call[1] for call in calls] == ["apt-get", "env", "sysctl"]
    assert calls[1][-3:] == ["pgbouncer", "prometheus", "postgresql"]
    assert calls[2][-1] == "kernel.apparmor_restrict_unprivileged_userns=0"


def _without_pgbouncer(folder: Path) -> Path:
    """The programs that the script needs, and no others."""
    programs = folder / "bare"
    programs.mkdir()
    for name in ("bash", "env", "basename", "dirname", "cat", "sh"):
        (programs / name).symlink_to(Path("/bin") / name if (Path("/bin") / name).exists() else Path("/usr/bin") / name)
    return programs
