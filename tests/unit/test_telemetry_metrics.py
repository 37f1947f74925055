"""The metrics that dashboards and alerts are built on."""

import re
from pathlib import Path

import pytest
from prometheus_client import Counter, Histogram

from headrace_core.telemetry import metrics
from headrace_core.telemetry.catalogue import END, labels_of, name_of, renewed, table
from headrace_core.telemetry.metrics import CATALOGUE, Described

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "monitoring.md"
SERVICES = {"producer", "consumer", "status", "every service"}
# Closed sets, each: declared queues, registered kinds, codes, reasons, names of ours. No id, no namespace, no text.
LABELS = {
    *("kind", "queue", "reason", "level", "path", "what", "source", "verdict", "outcome", "state", "budget", "follows"),
    *("settlement", "mode", "backend", "direction", "cause", "how", "method", "code", "part", "name"),
    *("service", "version", "python"),
}
EVERY = pytest.mark.parametrize("described", CATALOGUE, ids=name_of)


def test_every_metric_is_named_after_the_project_and_exposed() -> None:
    text = metrics.exposition().decode()
    for described in CATALOGUE:
        assert f"# HELP {name_of(described)} " in text
    assert "process_resident_memory_bytes" in text


def test_the_page_has_the_table_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == renewed(page), "run: python -m headrace_core.telemetry.catalogue docs/monitoring.md"
    assert all(f"`{name_of(described)}`" in table() for described in CATALOGUE)


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the marks"):
        renewed(f"a page {END}")


@EVERY
def test_its_name_its_labels_and_its_words_keep_to_the_conventions(described: Described) -> None:
    name, (family,) = name_of(described), described.metric.describe()
    assert re.fullmatch(r"headrace_[a-z_]+", name)
    assert name.endswith("_total") == isinstance(described.metric, Counter)
    if isinstance(described.metric, Histogram):
        assert name.endswith(("_seconds", "_size"))
    assert not re.search(r"_(ms|millis|minutes|mb|kb|percent)\b", name)
    assert set(labels_of(described)) <= LABELS
    assert family.documentation.endswith(".")
    assert set(described.moved_by) <= SERVICES


@EVERY
def test_it_is_moved_somewhere_in_the_services_that_the_table_names(described: Described) -> None:
    # A counter that is declared and never counted shows 0 for ever, and nobody asks why.
    (attribute,) = [name for name, value in vars(metrics).items() if value is described.metric and name[0] != "_"]
    folders = {"every service": "headrace_core"} | {name: name for name in ("producer", "consumer", "status")}
    own = [ROOT / folders[service] for service in described.moved_by]
    shared = ROOT / "headrace_core"
    for folder in own:
        files = [*folder.rglob("*.py"), *shared.rglob("*.py")]
        assert any(f"metrics.{attribute}" in path.read_text(encoding="utf-8") for path in files) or attribute in {
            "mode",
            "build_info",
        }, f"nothing in {folder.name} moves {attribute}"


def test_a_whole_batch_counts_as_its_values_one_by_one() -> None:
    values = [0.0, 0.005, 0.0051, 0.3, 7.0, 40_000.0]
    at_once, singly = (metrics.wait_seconds.labels(queue) for queue in ("batch-of-a-test", "singly-of-a-test"))
    at_once.observe_many(values)
    for value in values:
        singly.observe(value)
    at_once.observe_many([])
    assert _samples("batch-of-a-test") == _samples("singly-of-a-test")
    at_once.observe_many([-1.0])
    assert _samples("batch-of-a-test")["_sum"] == pytest.approx(sum(values))
    assert _samples("batch-of-a-test")["_count"] == len(values) + 1


def _samples(queue: str) -> dict[str, float]:
    (family,) = metrics.wait_seconds.collect()
    return {
        f"{sample.name.removeprefix(family.name)}{sample.labels.get('le', '')}": sample.value
        for sample in family.samples
        if sample.labels["queue"] == queue and not sample.name.endswith("_created")
    }


def test_figures_of_several_sources_are_added_and_go_with_them() -> None:
    gauge = metrics.db_connections.labels("busy")

    def shown() -> float:
        metrics.exposition()
        return metrics.REGISTRY.get_sample_value("headrace_db_connections", {"state": "busy"}) or 0.0

    before = shown()
    hides = [metrics.show(lambda number=number: [(gauge, number)]) for number in (2.0, 3.0)]  # type: ignore[misc]
    assert shown() == before + 5.0
    hides[0]()
    assert shown() == before + 3.0
    hides[1]()
    hides[1]()
    assert shown() == before


def test_a_process_says_which_service_and_release_it_is() -> None:
    metrics.set_service("status")
    (family,) = metrics.build_info.collect()
    (labels,) = [sample.labels for sample in family.samples if sample.labels["service"] == "status"]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", labels["version"])
    assert labels["python"].startswith("3.")


def test_what_is_judged_by_its_growth_is_there_before_it_grows() -> None:
    for how in ("published", "removed"):
        assert metrics.REGISTRY.get_sample_value("headrace_dead_letters_repaired_total", {"how": how}) is not None


def test_exactly_one_mode_is_in_force() -> None:
    metrics.set_mode("fallback")
    metrics.set_mode("broker")
    values = {name: metrics.REGISTRY.get_sample_value("headrace_mode", {"mode": name}) for name in metrics.MODES}
    assert values == {"broker": 1.0, "fallback": 0.0, "postgres": 0.0}
    with pytest.raises(ValueError, match="no such mode"):
        metrics.set_mode("pigeon")
