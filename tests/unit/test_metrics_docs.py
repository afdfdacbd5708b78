"""docs/metrics.md is a contract: it and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Info

from common.metrics import (
    DELIVERY_KINDS,
    OUTCOMES,
    PREFIX,
    ConsumerMetrics,
    ProducerMetrics,
    ServiceMetrics,
    WriterMetrics,
)
from common.overview import ConsumerInfo, ConsumerState, QueueStats

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"
SERVICES = {"producer": ProducerMetrics, "consumer": ConsumerMetrics, "writer": WriterMetrics}


def _rows() -> dict[str, tuple[str, tuple[str, ...], frozenset[str], str]]:
    """Return the table: name → type, labels, services, meaning."""
    rows = {}
    for line in DOC.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| `{PREFIX}_"):
            name, kind, labels, services, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            named = SERVICES if services == "all" else services.split(", ")
            rows[name.strip("`")] = (kind, tuple(re.findall(r"`(\w+)`", labels)), frozenset(named), meaning)
    return rows


def _in_code() -> dict[str, tuple[str, tuple[str, ...], frozenset[str], str]]:
    found: dict[str, Any] = {}
    for service, metrics in SERVICES.items():
        for collector in metrics().registry._collector_to_names:
            if not getattr(collector, "_name", "").startswith(PREFIX):
                continue
            name, kind, labels = collector._name, collector._type, tuple(collector._labelnames)
            if isinstance(collector, Info):
                name, kind, labels = f"{name}_info", "gauge", tuple(collector._value)
            elif kind == "counter":
                name = f"{name}_total"
            services = found[name][2] if name in found else frozenset()
            found[name] = (kind, labels, services | {service}, collector._documentation)
    return found


def test_the_table_lists_every_metric_with_its_type_labels_services_and_meaning() -> None:
    """Dashboards and alerts are built from the table."""
    assert _rows() == _in_code()


@pytest.mark.parametrize("value", [*DELIVERY_KINDS, *OUTCOMES])
def test_every_value_of_a_label_is_explained(value: str) -> None:
    """A label's values are part of the contract as well."""
    assert f"`{value}`" in DOC.read_text(encoding="utf-8")


def test_the_outcomes_are_the_names_of_the_verdicts() -> None:
    """Each series exists from the start, so that a first failure shows in a rate."""
    from common.outcomes import Bury, Cancel, Delay, Publish, Release

    assert {verdict.NAME for verdict in (Publish, Delay, Bury, Cancel, Release)} == set(OUTCOMES)


def test_services_share_no_registry() -> None:
    """Two services in one process, as in tests and `sttream up`, must not count into each other."""
    one, other = ConsumerMetrics(), ConsumerMetrics()
    one.audio_seconds.inc(5)
    assert other.registry.get_sample_value("sttream_audio_seconds_total") == 0


def test_an_unknown_queue_is_no_empty_queue() -> None:
    """While Redis is away the gauges say NaN: an old figure, or 0, would look like a quiet night."""
    metrics = ProducerMetrics()
    consumers = (
        ConsumerInfo("a-1-x", "a", ConsumerState.RUNNING, ("j",), 0.1),
        ConsumerInfo("b-1-x", "b", ConsumerState.LOST, (), 99.0),
    )
    metrics.show_queue(QueueStats("q", {"high": 1, "normal": 2, "low": 3}, 4, 5, 6, 7, None, consumers))
    read = metrics.registry.get_sample_value
    assert [read("sttream_queue_depth", {"priority": name}) for name in ("high", "normal", "low")] == [1, 2, 3]
    assert (read("sttream_consumers"), read("sttream_writer_lag_entries")) == (1, 7)
    metrics.hide_queue()
    assert str(read("sttream_queue_running")) == "nan"
    assert str(read("sttream_queue_depth", {"priority": "low"})) == "nan"


def test_every_service_tells_its_version() -> None:
    """A rollout is watched by this."""
    assert ServiceMetrics().registry.get_sample_value("sttream_build_info", {"version": "0.1.0"}) == 1
