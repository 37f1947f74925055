"""A package of somebody else under one of our names is found and named."""

from pathlib import Path

import pytest

from headrace_core.runtime.shadow import check_names
from headrace_core.settings.errors import SettingsError


def test_our_own_packages_are_fine() -> None:
    check_names()


def test_a_name_without_a_package_is_fine() -> None:
    check_names(["no_such_package_anywhere"])


@pytest.mark.parametrize("layout", ["package", "module", "namespace"])
def test_somebody_elses_package_is_named_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    name = f"somebodys_{layout}"
    if layout == "module":
        (tmp_path / f"{name}.py").touch()
    else:
        (tmp_path / name).mkdir()
    if layout == "package":
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match=rf"'{name}' is somebody else's: it resolves to {tmp_path}/{name}"):
        check_names([name])
