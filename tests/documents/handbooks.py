"""Two handbooks, English and Chinese, with ten questions each and the passage that answers each of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Handbook:
    """A document, and for each question the range of characters of the right passage."""

    text: str
    questions: list[str]
    right: list[tuple[int, int]]


def handbook(language: str) -> Handbook:
    """Put `handbook_<language>.json` together as Markdown."""
    source = json.loads(Path(__file__).with_name(f"handbook_{language}.json").read_text(encoding="utf-8"))
    text = f"# {source['title']}\n\n"
    places: dict[str, tuple[int, int]] = {}
    for passage in source["passages"]:
        if passage["heading"]:
            text += f"## {passage['heading']}\n\n"
        places[passage["id"]] = (len(text), len(text) + len(passage["text"]))
        text += passage["text"] + "\n\n"
    asked = source["questions"]
    return Handbook(text, [item["question"] for item in asked], [places[item["passage"]] for item in asked])


def found_among_first_three(handbook: Handbook, answers: list[dict[str, Any]]) -> list[str]:
    """The questions whose right passage overlaps one of the first three supporting passages."""
    return [
        question
        for question, (start, end), answer in zip(handbook.questions, handbook.right, answers, strict=True)
        if any(item["start"] < end and item["end"] > start for item in answer["passages"][:3])
    ]
