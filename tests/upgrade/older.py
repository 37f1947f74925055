"""The release before this one, laid out from git: its processes run beside ours, in the same environment.

It is the newest tag v* that is not the current commit. As long as there is none it is the last commit that did not know
the newest migration: the newest code that was written for another schema.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.deploy.tools import ROOT, missing

PACKAGES = ("headrace", "headrace_core", "producer", "consumer", "status")
MIGRATIONS = "headrace_core/db/migrations"
GIT_SECONDS = 30
WITNESS = "imported"
# Runs in every process that has this folder on its path, before anything of ours is imported.
_SITECUSTOMIZE = f"""
import importlib.util, json, os, pathlib
_found = {{name: importlib.util.find_spec(name).origin for name in {PACKAGES!r}}}
pathlib.Path(__file__).with_name("{WITNESS}-" + str(os.getpid())).write_text(json.dumps(_found))
"""


def commit() -> str:
    """The older release's commit. Without a git that knows it the test is skipped, in CI it fails."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        missing("the release before this one is found with git, in a checkout with its history")
    tag = _newest_tag()
    found = _git("rev-parse", "--verify", "--quiet", f"{tag or _before_the_newest_migration()}^{{commit}}")
    if not found:
        missing("the release before this one is not in this clone; get the history with: git fetch --unshallow --tags")
    return found


def lay_out(folder: Path) -> Path:
    """The older release's code in `folder`, which is returned. Processes started from it leave a note there."""
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit(), *PACKAGES],
        cwd=ROOT, capture_output=True, timeout=GIT_SECONDS, check=True,
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")
    return folder


def imported_by(folder: Path, pid: int) -> set[Path]:
    """The folders that the process `pid` imports our packages from."""
    found: dict[str, str] = json.loads((folder / f"{WITNESS}-{pid}").read_text(encoding="utf-8"))
    return {Path(path).parents[1] for path in found.values()}


def migrations(folder: Path) -> set[str]:
    """The versions of the migrations of a checkout."""
    return {file.stem for file in (folder / MIGRATIONS).glob("*.sql")}


def releases() -> list[str]:
    """Every release that this commit follows; as long as there is none, the older code that `commit` found."""
    return _git("tag", "--list", "v*", "--merged", "HEAD").split() or [commit()]


def migrations_of(release: str) -> dict[str, str]:
    """The migrations of a release: version to SQL."""
    names = _git("ls-tree", "--name-only", release, f"{MIGRATIONS}/").split()
    return {Path(name).stem: _show(release, name) for name in names if name.endswith(".sql")}


def _newest_tag() -> str:
    head = _git("rev-parse", "HEAD")
    tags = _git("tag", "--list", "v*", "--merged", "HEAD", "--sort=-v:refname").split()
    return next((tag for tag in tags if _git("rev-parse", f"{tag}^{{commit}}") != head), "")


def _before_the_newest_migration() -> str:
    newest = sorted(_git("ls-tree", "--name-only", "HEAD", f"{MIGRATIONS}/").split())[-1]
    # Where a branch was merged, what counts is what had landed before it.
    added = _git("log", "--first-parent", "-m", "--diff-filter=A", "--format=%H", "-1", "--", newest)
    return f"{added}~1"


def _show(release: str, name: str) -> str:
    done = subprocess.run(
        ["git", "show", f"{release}:{name}"], cwd=ROOT, capture_output=True, timeout=GIT_SECONDS, check=True
    )
    return done.stdout.decode()


def _git(*arguments: str) -> str:
    """What git says; empty where it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
