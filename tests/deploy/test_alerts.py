"""deploy/monitoring/alerts.yaml: a rule fires on what it is for, on nothing else, and leads to a page that exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.promql import nodes, parse, selectors
from tests.deploy.rendering import CHART
from tests.deploy.test_monitoring import SAMPLES, TARGET_LABELS
from tests.deploy.tools import ROOT, tool

ALERTS = ROOT / "deploy" / "monitoring" / "alerts.yaml"
CASES = yaml.safe_load((Path(__file__).parent / "alert_cases.yaml").read_text())
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}
# Of Prometheus itself.
KNOWN = SAMPLES | {"up": ("gauge", set())}
EVERY = pytest.mark.parametrize("name", RULES)
FIRING = 'count by (alertname) (ALERTS{alertstate="firing"%s})'


def run_promtool(folder: Path, series: dict[str, str], at: str, expression: str, expected: list[str]) -> None:
    """Judge `expression`, which counts alerts by their names, at a time after the series began."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": at, "exp_samples": samples}],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    command = [tool("promtool", install="make ci-tools"), "test", "rules", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr


@EVERY
def test_it_fires_on_what_it_is_for(name: str, tmp_path: Path) -> None:
    case = CASES["alerts"][name]
    run_promtool(tmp_path, case["fires"], case.get("at", "25m"), FIRING % f', alertname="{name}"', [name])


@EVERY
def test_it_is_quiet_on_what_is_close_to_that(name: str, tmp_path: Path) -> None:
    case = CASES["alerts"][name]
    run_promtool(tmp_path, case["quiet"], case.get("at", "25m"), FIRING % f', alertname="{name}"', [])


def test_a_healthy_installation_has_none(tmp_path: Path) -> None:
    run_promtool(tmp_path, CASES["healthy"], "25m", FIRING % "", [])


def test_prometheus_reads_the_rules() -> None:
    promtool = tool("promtool", install="make ci-tools")
    command = [promtool, "check", "rules", str(ALERTS)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_case_and_every_case_a_rule() -> None:
    assert set(CASES["alerts"]) == set(RULES)
    asked = {selector.metric for rule in RULES.values() for selector in selectors(parse(rule["expr"]))}
    assert asked <= {series.partition("{")[0] for series in CASES["healthy"]}


@EVERY
def test_it_asks_for_metrics_and_labels_that_exist(name: str) -> None:
    expression = parse(RULES[name]["expr"])
    for selector in selectors(expression):
        known = KNOWN[selector.metric][1] | TARGET_LABELS
        assert {label for label, _, _ in selector.matchers} <= known, selector
    for node in nodes(expression):
        for selector in selectors(node):
            assert set(node.labels or ()) <= KNOWN[selector.metric][1] | TARGET_LABELS, node.labels


@EVERY
def test_it_says_how_bad_it_is_what_it_is_and_where_to_read(name: str) -> None:
    rule = RULES[name]
    assert name.startswith("Headrace")
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page)


@EVERY
def test_the_page_of_monitoring_explains_it(name: str) -> None:
    assert name.lower() in anchors(ROOT / "docs" / "monitoring.md")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_series_of_the_cases_are_ours() -> None:
    parts = [CASES["healthy"], *(case[part] for case in CASES["alerts"].values() for part in ("fires", "quiet"))]
    for series in (name for part in parts for name in part):
        (selector,) = selectors(parse(series))
        allowed = KNOWN[selector.metric][1] | TARGET_LABELS
        assert {label for label, _, _ in selector.matchers} <= allowed, series


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboards/headrace.json"])
def test_the_chart_has_the_same_file(file: str) -> None:
    ours = ROOT / "deploy" / "monitoring" / file
    copy = CHART / "monitoring" / ours.name
    assert copy.read_text() == ours.read_text(), f"run: cp {ours.relative_to(ROOT)} {copy.relative_to(ROOT)}"
