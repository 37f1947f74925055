"""The image's files laid in a folder by the Dockerfile's own steps, and programs run from them as a container would.

There is no Docker where the tests run. So each step that makes the application is run as it stands, with the image's
folders moved beneath one of the test's; only the libraries are not installed anew but taken from the environment of the
tests. A program then runs in namespaces of its own: the root read-only, /tmp new and empty, as user 10001.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.dockerfile import Dockerfile, Stage, copied, ignored
from tests.deploy.tools import ROOT, missing

LIBRARIES = Path(sysconfig.get_path("purelib"))
RUN_SECONDS = 50.0
# What is needed beneath /tmp is kept in a folder of its own until the new /tmp is there. Arguments: how many paths are
# kept, the paths, the program.
CONTAINER = """
set -eu
kept=$1; shift
mount -t tmpfs tmpfs /srv
number=0
while [ $number -lt $kept ]; do
    mkdir /srv/$number; mount --rbind "$1" /srv/$number
    eval "path$number=\\$1"; number=$((number + 1)); shift
done
mount -t tmpfs tmpfs /tmp
number=0
while [ $number -lt $kept ]; do
    eval "path=\\$path$number"
    mkdir -p "$path"; mount --rbind /srv/$number "$path"; mount -o remount,bind,ro "$path"; number=$((number + 1))
done
umount -l /srv
mount -o remount,bind,ro /
cd "$WORKING_FOLDER"
exec unshare --user --map-user=10001 --map-group=10001 "$@"
"""


@dataclass(frozen=True)
class LaidImage:
    """`root` stands for the image's /, `wheel` is what the application was installed from."""

    root: Path
    wheel: Path
    environment: Mapping[str, str]
    working_folder: Path

    @property
    def python(self) -> Path:
        return self.root / "opt" / "headrace" / "bin" / "python"

    @property
    def packages(self) -> Path:
        (found,) = (self.root / "opt" / "headrace" / "lib").glob("python3.*/site-packages")
        return found

    async def start(self, command: Sequence[str], variables: Mapping[str, str]) -> asyncio.subprocess.Process:
        """Start a command of the image, standard error with standard output."""
        program = shutil.which(command[0], path=self.environment["PATH"])
        assert program is not None, f"the image has no program {command[0]}"
        environment = {**self.environment, "HOME": str(self.working_folder), **variables}
        words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", CONTAINER, "container"]
        kept = [str(self.root), *([str(LIBRARIES)] if LIBRARIES.is_relative_to("/tmp") else [])]
        return await asyncio.create_subprocess_exec(
            *words, str(len(kept)), *kept, program, *command[1:],
            env={**environment, "WORKING_FOLDER": str(self.working_folder)}, stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip

    async def run(self, command: Sequence[str], variables: Mapping[str, str]) -> tuple[int | None, str]:
        """Run a command to its end; its exit code and its output."""
        process = await self.start(command, variables)
        try:
            async with asyncio.timeout(RUN_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode, output.decode()


def demand_namespaces() -> None:
    """Skip, or fail in CI, where an ordinary user may not make namespaces."""
    tried = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/srv"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        missing(f"namespaces are not allowed here ({tried.stderr.strip()}); allow them with: make ci-tools")


def lay(image: Dockerfile, folder: Path) -> LaidImage:
    """Run the Dockerfile's steps in `folder`. Takes about ten seconds."""
    root, staged = folder / "image", folder / "staged"
    moved = {"/opt/headrace": str(root / "opt/headrace"), "/wheels": str(folder / "wheels"), "/staged": str(staged)}
    source = folder / "src"
    _copy_sources(image.stage("application"), source)
    for step in image.stage("libraries").steps():
        if "--require-hashes" not in step:
            _run(_moved(step, moved), source)
    laid = LaidImage(root, folder, _environment(image, root), root / image.runs.last("WORKDIR").lstrip("/"))
    for step in image.stage("application").steps():
        if "--require-hashes" not in step:
            _run(_moved(step, moved), source)
    assert "--from=application /staged/ /" in image.runs.all("COPY")
    shutil.copytree(staged / str(root).lstrip("/"), root, dirs_exist_ok=True, symlinks=True)
    # After the application: it is installed there already, in the eyes of pip. Nothing but the libraries comes from it,
    # since what makes this checkout importable are .pth files, which count in a folder of Python's own alone.
    (laid.packages / "libraries.pth").write_text(f"{LIBRARIES}\n")
    laid.working_folder.mkdir(parents=True)
    (wheel,) = (folder / "wheels").iterdir()
    return LaidImage(root, wheel, laid.environment, laid.working_folder)


def _copy_sources(stage: Stage, folder: Path) -> None:
    for source in copied(stage):
        path = ROOT / source
        for file in [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]:
            name = str(file.relative_to(ROOT))
            if not ignored(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / name)


def _environment(image: Dockerfile, root: Path) -> dict[str, str]:
    """The image's variables, as its ENV lines give them."""
    variables = {"PATH": os.environ["PATH"]}
    for line in image.runs.all("ENV"):
        for name, value in re.findall(r"(\w+)=(\S+)", line):
            variables[name] = value.replace("$PATH", variables["PATH"]).replace("/opt/", f"{root}/opt/")
    return variables


def _moved(step: str, moved: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, moved)), lambda found: moved[found[0]], step)


def _run(step: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "SOURCE_DATE_EPOCH": "315532800"}
    done = subprocess.run(
        ["/bin/sh", "-euc", step], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
