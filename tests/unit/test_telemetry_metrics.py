"""The metrics that dashboards and alerts are built on."""

import pytest

from headrace_core.telemetry import metrics


def test_every_metric_is_named_after_the_project_and_exposed() -> None:
    text = metrics.exposition().decode()
    for name in ("submit_batch_size", "republished_total", "fenced_total", "takeovers_total", "watchers"):
        assert f"headrace_{name}" in text
    assert "process_resident_memory_bytes" in text


def test_exactly_one_mode_is_in_force() -> None:
    metrics.set_mode("fallback")
    metrics.set_mode("broker")
    values = {name: metrics.REGISTRY.get_sample_value("headrace_mode", {"mode": name}) for name in metrics.MODES}
    assert values == {"broker": 1.0, "fallback": 0.0, "postgres": 0.0}
    with pytest.raises(ValueError, match="no such mode"):
        metrics.set_mode("pigeon")
