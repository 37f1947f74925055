"""`producer`, `consumer` and `status` are common words: another package of that name may stand first on the path."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import headrace_core
from headrace_core.settings.errors import SettingsError

SERVICES = ("producer", "consumer", "status")


def check_names(names: Iterable[str] = SERVICES) -> None:
    """Raise SettingsError, naming the path, if one of the services' names resolves to somebody else's package.

    Ours stand beside headrace_core, in the checkout and in site-packages alike. A name without a package is fine.
    """
    root = Path(str(headrace_core.__file__)).resolve().parent.parent
    for name in names:
        found = _location(name)
        if found is not None and found.parent != root:
            raise SettingsError(
                f"the package {name!r} is somebody else's: it resolves to {found}, and Headrace's stands in {root}; "
                f"start in another directory or remove that one from PYTHONPATH"
            )


def _location(name: str) -> Path | None:
    """The folder (or the file, for a plain module) that `import name` would take; nothing is imported."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None
