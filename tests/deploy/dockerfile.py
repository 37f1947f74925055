"""The Dockerfile as its stages and instructions, and what its .dockerignore leaves to it."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.tools import ROOT

FOLDER = ROOT / "deploy" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"


@dataclass
class Stage:
    """`base` is what stands after FROM; instructions are pairs of the keyword and the rest, on one line."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [rest for word, rest in self.instructions if word == keyword]

    def last(self, keyword: str) -> str:
        found = self.all(keyword)
        assert found, f"stage {self.name or 'of what runs'} has no {keyword}"
        return found[-1]

    def steps(self) -> list[str]:
        """What is run, without the mounts."""
        return [re.sub(r"^(--\S+ +)+", "", rest) for rest in self.all("RUN")]


@dataclass
class Dockerfile:
    arguments: dict[str, str]
    stages: list[Stage]

    def stage(self, name: str) -> Stage:
        (found,) = [stage for stage in self.stages if stage.name == name]
        return found

    @property
    def runs(self) -> Stage:
        return self.stages[-1]


def parsed(path: Path = DOCKERFILE) -> Dockerfile:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    read = Dockerfile({}, [])
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        keyword, rest = line.split(None, 1)
        rest = " ".join(rest.split())
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            read.stages.append(Stage(base, name))
        elif not read.stages:
            assert keyword == "ARG", line
            name, _, default = rest.partition("=")
            read.arguments[name] = default
        else:
            read.stages[-1].instructions.append((keyword, rest))
    return read


def copied(stage: Stage) -> list[str]:
    """Sources that come from the checkout."""
    lines = [rest.split() for rest in stage.all("COPY") if not rest.startswith("--from=")]
    return [source.rstrip("/") for words in lines for source in words[:-1]]


def ignored(path: str) -> bool:
    """Whether the build does not see a path of the checkout: the last rule that fits decides, as for Docker."""
    verdict = False
    for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        keeps = rule.startswith("!")
        if _fits(path, rule.removeprefix("!")):
            verdict = not keeps
    return verdict


def _fits(path: str, rule: str) -> bool:
    """A rule fits what it names, and everything beneath."""
    parts = path.split("/")
    beginnings = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    if rule.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, rule[3:]) for part in parts)
    return any(fnmatch.fnmatchcase(one, rule) for one in beginnings if one.count("/") == rule.count("/"))
