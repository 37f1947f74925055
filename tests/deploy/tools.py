"""Programs that these tests need and no wheel has: found in .tools (`make chart-tools`), else on the PATH.

One that is missing skips the test by its name; in CI it fails, since a test that is always skipped proves nothing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"


def tool(name: str, *, install: str = "make chart-tools") -> str:
    """Path of a program. `install` says how to get it."""
    found = shutil.which(name, path=os.pathsep.join([str(TOOLS / "bin"), os.environ.get("PATH", ""), "/usr/sbin"]))
    if found is None:
        missing(f"{name} is not installed; get it with: {install}")
    return found


def schema(name: str) -> Path:
    """A file of another project that `make chart-tools` has fetched, such as keda.sh_scaledobjects.yaml."""
    path = TOOLS / "schemas" / name
    if not path.is_file():
        missing(f"{name} is not there; get it with: make chart-tools")
    return path


def missing(sentence: str) -> NoReturn:
    """Skip the test, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)
