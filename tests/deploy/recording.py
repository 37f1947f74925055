"""Programs that only note how they were called: for scripts whose docker, cosign or cluster cannot be had in a test."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.tools import ROOT

# Prints what the test wants printed, writes the file that the real program would write, notes the call.
PROGRAM = """#!/bin/sh
printf '%s\\0' "$(basename "$0")" "$@" >>"$CALLS"
printf '\\n' >>"$CALLS"
folder="$(dirname "$0")"
[ ! -f "$folder/$(basename "$0").does" ] || . "$folder/$(basename "$0").does"
"""


@dataclass(frozen=True)
class Recorder:
    """A folder of such programs, first on the PATH of the scripts that it runs."""

    folder: Path

    def program(self, name: str, does: str = "") -> None:
        """Make a program; `does` is shell that it runs besides."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.write_text(PROGRAM)
        path.chmod(0o755)
        (self.folder / f"{name}.does").write_text(does)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script of deploy/delivery, with nothing of CI's own variables."""
        kept = {"HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
        path = os.pathsep.join([str(self.folder), os.environ["PATH"]])
        environment = {**kept, "PATH": path, "DIST": str(self.dist), "CALLS": str(self.folder / "calls"), **variables}
        command = [str(ROOT / "deploy" / "delivery" / script), *arguments]
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)

    @property
    def dist(self) -> Path:
        return self.folder / "dist"

    def calls(self) -> list[list[str]]:
        """The calls so far, each as its words; those that ask whether a plugin is there left out."""
        path = self.folder / "calls"
        lines = path.read_text().split("\0\n") if path.exists() else []
        calls = [line.split("\0") for line in lines if line]
        return [call for call in calls if call[2:] != ["version"]]


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence with which a script that failed has ended."""
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().splitlines()[-1]


def image_metadata(digest: str, path: Path) -> str:
    """Shell that writes what `docker buildx build --metadata-file` writes."""
    text = json.dumps({"buildx.build.ref": "builder/1", "containerimage.digest": digest}, indent=2)
    return f"cat >'{path}' <<'EOF'\n{text}\nEOF\n"
