"""What Prometheus is told by plugin, mounter and webhook, in its text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fusefs.kubernetes.vitals import vitals_of

if TYPE_CHECKING:
    from fusefs.kubernetes.mounter import Mounter
    from fusefs.kubernetes.plugin import Plugin

Sample = tuple[Mapping[str, str], float]


def metric(name: str, kind: str, help: str, samples: Iterable[Sample]) -> str:
    """One metric with its samples, each (labels, value)."""
    lines = [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def plugin_metrics(plugin: Plugin) -> str:
    """The plugin's page."""
    calls = [
        ({"method": name, "code": code}, float(count))
        for (name, code), count in sorted(plugin.calls.answered.items())
    ]
    again = [
        ({"result": result}, float(count))
        for result, count in sorted(plugin.node.republished.items())
    ]
    return "".join(
        (
            metric("fusefs_csi_calls_total", "counter", "Calls answered, by code.", calls),
            metric(
                "fusefs_csi_republish_total", "counter", "Repeated publishes, by what came of it.",
                again,
            ),
            metric(
                "fusefs_csi_source_mounts", "gauge", "Source mounts on this node.",
                [({}, float(len(plugin.sources.all())))],
            ),
            metric(
                "fusefs_csi_mounter_connected", "gauge", "Whether the mounter is connected.",
                [({}, float(plugin.mounter.is_connected))],
            ),
            metric(
                "fusefs_csi_mounter_connections_total", "counter",
                "How often a mounter connected.", [({}, float(plugin.mounter.connections_total))],
            ),
        )
    )  # fmt: skip


def mounter_metrics(mounter: Mounter) -> str:
    """The mounter's page: its own figures, and each daemon's counters by mount key."""
    recovered: list[Sample] = []
    counters: list[Sample] = []
    for serving in mounter.all():
        labels = {"key": serving.key, "source": serving.record.source}
        vitals = vitals_of(serving.estate)
        recovered.append((labels, float(serving.recoveries + vitals.note().restarts)))
        for name, value in vitals.counters().items():
            counters.append(({**labels, "counter": name}, float(value)))
    return "".join(
        (
            metric(
                "fusefs_mounter_connected", "gauge", "Whether the plugin is connected.",
                [({}, float(mounter.is_connected))],
            ),
            metric(
                "fusefs_mounter_recoveries_total", "counter",
                "How often a mount's processes were started again after they died.", recovered,
            ),
            metric(
                "fusefs_mounter_counter", "counter",
                "The counters of each mount's daemon (docs/operations.md).", counters,
            ),
        )
    )  # fmt: skip


def webhook_metrics(reviews: Mapping[str, int]) -> str:
    """The webhook's page: how often it was asked, by what came of it."""
    samples = [({"result": result}, float(count)) for result, count in sorted(reviews.items())]
    return metric(
        "fusefs_webhook_reviews_total", "counter", "Pods reviewed, by what came of it.", samples
    )
