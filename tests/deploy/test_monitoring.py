"""deploy/monitoring: Prometheus finds what Compose runs, and the dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from headrace.v1 import dead_letter_pb2, producer_pb2, queue_pb2, status_pb2
from headrace_core.telemetry import metrics
from status.keda import external_scaler_pb2
from tests.deploy.promql import Expression, Node, NotPromQL, Selector, nodes, parse, selectors
from tests.deploy.tools import ROOT

FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARD = FOLDER / "dashboards" / "headrace.json"
SERVICES = ("producer", "consumer", "status")
# What Prometheus adds to every sample.
TARGET_LABELS = {"job", "instance"}
OF_THE_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"}
LEFT_OUT = ("method", "!~")
UNITS = {"ops", "short", "s", "bytes", "none", "percentunit"}


def samples() -> dict[str, tuple[str, set[str]]]:
    """Every sample that the services show: its name → its metric's type, its labels."""
    found: dict[str, tuple[str, set[str]]] = {name: ("process", set()) for name in OF_THE_PROCESS}
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            (family,) = metric.describe()
            labels = set(metric._labelnames)
            if isinstance(metric, Histogram):
                found |= {f"{family.name}_{part}": ("histogram", labels) for part in ("sum", "count")}
                found[f"{family.name}_bucket"] = ("histogram", labels | {"le"})
            elif isinstance(metric, Counter):
                found[f"{family.name}_total"] = ("counter", labels)
            else:
                found[family.name] = ("gauge", labels)
    return found


SAMPLES = samples()
OF_HISTOGRAMS = {name.removesuffix("_bucket") for name in SAMPLES if name.endswith("_bucket")}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    document = json.loads(DASHBOARD.read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


def expressions(panels: list[dict[str, Any]]) -> Iterator[tuple[str, Expression]]:
    for panel in panels:
        for target in panel["targets"]:
            yield f"{panel['title']}: {target['expr']}", parse(target["expr"])


# -- the dashboard -----------------------------------------------------------------------------------------------------
def test_the_process_is_measured_under_these_names() -> None:
    shown = metrics.exposition().decode()
    assert all(f"\n{name} " in shown for name in OF_THE_PROCESS)


def test_every_query_asks_for_metrics_and_labels_that_exist(panels: list[dict[str, Any]]) -> None:
    asked = 0
    for where, expression in expressions(panels):
        for selector in selectors(expression):
            assert selector.metric in SAMPLES, where
            known = SAMPLES[selector.metric][1] | TARGET_LABELS
            assert {label for label, _, _ in selector.matchers} <= known, where
            asked += 1
    assert asked > 40


def test_groupings_are_by_labels_that_their_metrics_have(panels: list[dict[str, Any]]) -> None:
    for where, expression in expressions(panels):
        for node in nodes(expression):
            for selector in selectors(node):
                assert set(node.labels or ()) <= SAMPLES[selector.metric][1] | TARGET_LABELS, where


def test_counters_are_rated_and_gauges_are_not(panels: list[dict[str, Any]]) -> None:
    for where, expression in expressions(panels):
        rated = {
            id(child) for node in nodes(expression) if node.name in {"rate", "increase"} for child in node.children
        }
        for selector in selectors(expression):
            grows = selector.metric.endswith(("_total", "_sum", "_count", "_bucket"))
            counted = isinstance(expression, Node) and expression.name == "count"
            assert counted or grows == (id(selector) in rated), where


def test_quantiles_keep_the_buckets_apart(panels: list[dict[str, Any]]) -> None:
    quantiles = [
        (where, node)
        for where, expression in expressions(panels)
        for node in nodes(expression)
        if node.name == "histogram_quantile"
    ]
    assert len(quantiles) > 2
    for where, node in quantiles:
        inside = node.children[1]
        assert isinstance(inside, Node), where
        assert "le" in (inside.labels or ()), where


def test_latency_is_that_of_calls_not_of_streams(panels: list[dict[str, Any]]) -> None:
    # How long a watch was open says nothing about how quick the service is.
    files = [producer_pb2, status_pb2, queue_pb2, dead_letter_pb2, external_scaler_pb2]
    methods = [
        (f"{service.full_name}/{method.name}", method.server_streaming)
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert sum(streams for _, streams in methods) >= 3
    for where, expression in expressions(panels):
        for selector in selectors(expression):
            if selector.metric == "headrace_rpc_seconds_bucket":
                (left_out,) = [value for label, operator, value in selector.matchers if (label, operator) == LEFT_OUT]
                for method, streams in methods:
                    assert bool(re.fullmatch(left_out, method)) == streams, (where, method)


def test_the_queues_gauges_are_not_summed_over_replicas(panels: list[dict[str, Any]]) -> None:
    # Each replica of the status service shows the same figures.
    for where, expression in expressions(panels):
        for node in nodes(expression):
            for child in node.children:
                if isinstance(child, Selector) and child.metric.startswith("headrace_queue_"):
                    assert (node.name, node.labels) == ("max", ("queue",)), where


def test_legends_name_labels_that_are_left(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            left = {label for node in nodes(parse(target["expr"])) for label in node.labels or ()}
            assert wanted <= left - {"le"}, panel["title"]


def test_every_query_is_of_our_services_and_queues_with_one_are_chosen(panels: list[dict[str, Any]]) -> None:
    for where, expression in expressions(panels):
        for selector in selectors(expression):
            assert ("job", "=~", "$job") in selector.matchers, where
            if "queue" in SAMPLES[selector.metric][1]:
                assert ("queue", "=~", "$queue") in selector.matchers, where


def test_what_an_operator_wants_is_there(panels: list[dict[str, Any]]) -> None:
    shown = {selector.metric for _, expression in expressions(panels) for selector in selectors(expression)}
    # Every metric of ours, whatever is added later: a new one without a panel is a question, not an oversight.
    ours = {name for name in SAMPLES if name.startswith("headrace_")}
    missing = ours - shown
    parts = {f"{name}{part}" for name in OF_HISTOGRAMS for part in ("_bucket", "_sum", "_count")}
    assert missing <= parts
    # Of a histogram one part is enough.
    assert not [name for name in OF_HISTOGRAMS if {f"{name}_bucket", f"{name}_sum", f"{name}_count"} <= missing]


def test_every_panel_says_what_to_do_and_has_a_unit(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        assert len(panel["description"].split()) > 8, panel["title"]
        assert panel["description"].endswith((".", "?")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]


def test_units_fit_what_is_asked(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        names = [node.name for target in panel["targets"] for node in nodes(parse(target["expr"]))]
        found = {selector.metric for target in panel["targets"] for selector in selectors(parse(target["expr"]))}
        unit = panel["fieldConfig"]["defaults"]["unit"]
        if all(name.endswith("_bytes") for name in found):
            assert unit == "bytes", panel["title"]
        elif "rate" in names and "/" not in names and "histogram_quantile" not in names:
            assert unit == ("none" if "process_cpu_seconds_total" in found else "ops"), panel["title"]
        elif all("_seconds" in name for name in found):
            assert unit == "s", panel["title"]
        else:
            assert unit == "short", panel["title"]


def test_panels_do_not_overlap_and_are_told_apart(dashboard: dict[str, Any]) -> None:
    everything = dashboard["panels"]
    ids = [panel["id"] for panel in everything]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in everything]
    assert len(titles) == len(set(titles))
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_query_goes_to_the_chosen_data_source(dashboard: dict[str, Any], panels: list[dict[str, Any]]) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels:
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [chosen] * (
            1 + len(panel["targets"])
        )
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert set(variables) == {"datasource", "job", "queue"}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("job", "queue"):
        assert variables[name]["datasource"] == chosen
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["query"]["query"])
        assert found is not None
        assert found[2] in SAMPLES[found[1]][1] | TARGET_LABELS
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used == set(variables)


@pytest.mark.parametrize(
    "text",
    [
        "sum(rate(a_total[5m])",
        "rate(a_total)",
        "sum by () (a)",
        'a{job="x}',
        "a{job=x}",
        "a b",
        "histogram_quantile(a, 0.5)",
        "ratee(a[5m])",
        "a[5]",
        "sum a",
        "",
    ],
)
def test_what_is_no_promql_is_refused(text: str) -> None:
    with pytest.raises(NotPromQL):
        parse(text)


# -- Prometheus and Grafana beside Compose -----------------------------------------------------------------------------
def test_prometheus_scrapes_every_service_of_compose_where_it_listens(compose: dict[str, Any]) -> None:
    configuration = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    # Called like the chart's Services, so that one dashboard fits both.
    assert set(jobs) == {f"headrace-{name}" for name in SERVICES}
    for name in SERVICES:
        (found,) = jobs[f"headrace-{name}"]["dns_sd_configs"]
        listens = compose["services"][name]["environment"]["HEADRACE_OPS_LISTEN"]
        assert (found["names"], found["type"], f"0.0.0.0:{found['port']}") == ([name], "A", listens)
        assert jobs[f"headrace-{name}"].get("metrics_path", "/metrics") == "/metrics"


def test_prometheus_reads_the_file_that_is_mounted(compose: dict[str, Any]) -> None:
    prometheus = compose["services"]["prometheus"]
    (rules,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["rule_files"]
    assert f"../monitoring/alerts.yaml:{rules}:ro" in prometheus["volumes"]
    (option,) = [word for word in prometheus["command"] if word.startswith("--config.file=")]
    assert f"../monitoring/prometheus.yaml:{option.partition('=')[2]}:ro" in prometheus["volumes"]


def test_grafana_finds_prometheus_and_the_dashboard(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    (source,) = yaml.safe_load((FOLDER / "grafana" / "datasources.yaml").read_text())["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert source["type"] == "prometheus"
    assert compose["services"][host]["ports"][0].endswith(f":{port}")
    scrape = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    (provider,) = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"]
    place = provider["options"]["path"]
    assert f"../monitoring/dashboards:{place}:ro" in grafana["volumes"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{place}/{DASHBOARD.name}"
    for kind in ("datasources", "dashboards"):
        target = f"/etc/grafana/provisioning/{kind}/headrace.yaml"
        assert f"../monitoring/grafana/{kind}.yaml:{target}:ro" in grafana["volumes"]
