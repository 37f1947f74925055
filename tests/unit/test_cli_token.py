"""`headrace token new`: a token that the services take, and an entry without it."""

import json
from pathlib import Path

import pytest

from headrace.cli.entry import run
from headrace_core.access.authenticator import Authenticator, credentials_of


async def test_the_entry_lets_its_token_in_and_does_not_contain_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["token", "new", "ci", "--grant", "submit:builds", "--grant", "read:*"]) == 0
    token, _, entry = capsys.readouterr().out.partition("\n\n")
    assert token not in entry
    assert len(token) >= 43
    path = tmp_path / "access.toml"
    path.write_text(entry, encoding="utf-8")
    found = await Authenticator(path).identify(credentials_of([f"Bearer {token}"]))
    assert (found.name, {str(grant) for grant in found.grants}) == ("token:ci", {"submit:builds", "read:*"})


def test_no_two_tokens_are_alike(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = set()
    for _ in range(3):
        assert run(["token", "new", "ci", "--grant", "admin:*", "--json"]) == 0
        tokens.add(json.loads(capsys.readouterr().out)["token"])
    assert len(tokens) == 3


@pytest.mark.parametrize("arguments", [["ci", "--grant", "root:*"], ['c"i', "--grant", "read:*"], ["ci"]])
def test_what_makes_no_sense_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["token", "new", *arguments]) == 2
    assert capsys.readouterr().out == ""
