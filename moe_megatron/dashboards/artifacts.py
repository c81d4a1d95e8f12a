"""Every generated file as text, by its path in the folder `grafana/`.

Output depends only on the arguments and the catalog, so that a build can be compared with what is
committed. It writes nothing.
"""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from moe_megatron.dashboards.cluster import CLUSTER
from moe_megatron.dashboards.cost import COST
from moe_megatron.dashboards.experts import experts_dashboard
from moe_megatron.dashboards.fleet import FLEET
from moe_megatron.dashboards.layout import Dashboard
from moe_megatron.dashboards.overview import OVERVIEW
from moe_megatron.dashboards.panels import Json
from moe_megatron.dashboards.prometheus_config import (
    SCRAPE_INTERVAL,
    PrometheusConfig,
    alertmanager_config,
    prometheus_config,
)
from moe_megatron.dashboards.provisioning import dashboard_provider, datasource
from moe_megatron.dashboards.routing import routing_dashboard
from moe_megatron.dashboards.rule_tests import promtool_file
from moe_megatron.dashboards.rules import Thresholds, alert_file, recording_file
from moe_megatron.dashboards.yaml_text import yaml_text

_IN_CONTAINER = "/var/lib/grafana/dashboards"
"""Folder where grafana/compose.yaml mounts the dashboards."""


def dashboards() -> Sequence[Dashboard]:
    """All dashboards, including the quantities that are registered now."""
    return (FLEET, OVERVIEW, routing_dashboard(), experts_dashboard(), CLUSTER, COST)


def dashboard_json() -> dict[str, Json]:
    """All dashboards as JSON, by file name."""
    return {f"{board.uid.removeprefix('moe-')}.json": board.to_json() for board in dashboards()}


def dashboard_files() -> dict[PurePosixPath, str]:
    """All dashboards as text."""
    return {
        PurePosixPath("dashboards", name): json.dumps(board, indent=2, ensure_ascii=True) + "\n"
        for name, board in dashboard_json().items()
    }


def rule_files(limits: Thresholds) -> dict[PurePosixPath, str]:
    """Recording and alerting rules as text."""
    return {
        PurePosixPath("rules/recording.yml"): yaml_text(recording_file(limits)),
        PurePosixPath("rules/alerts.yml"): yaml_text(alert_file(limits)),
    }


def grafana_files(
    dashboards_at: str, prometheus_url: str, interval: str = SCRAPE_INTERVAL
) -> dict[PurePosixPath, str]:
    """The provisioning files that Grafana reads when it starts.

    Args:
        dashboards_at: Folder of the dashboards, as Grafana sees it.
        prometheus_url: Address at which Grafana reaches Prometheus.
        interval: Prometheus' scrape interval.
    """
    folder = PurePosixPath("provisioning")
    return {
        folder / "datasources" / "prometheus.yml": yaml_text(datasource(prometheus_url, interval)),
        folder / "dashboards" / "moe.yml": yaml_text(dashboard_provider(dashboards_at)),
    }


def repository_files() -> dict[PurePosixPath, str]:
    """The files that are committed: for a site's own Prometheus and Grafana."""
    prometheus = PurePosixPath("prometheus")
    config = PrometheusConfig(
        target_files=("targets/*.json",),
        rule_files=("rules/*.yml",),
        alertmanagers=("127.0.0.1:9093",),
    )
    files = dashboard_files() | grafana_files(_IN_CONTAINER, "http://127.0.0.1:9090")
    files |= {prometheus / name: text for name, text in rule_files(Thresholds()).items()}
    files[prometheus / "tests" / "alerts.yml"] = yaml_text(promtool_file())
    files[prometheus / "prometheus.yml"] = yaml_text(prometheus_config(config))
    files[prometheus / "alertmanager.yml"] = yaml_text(alertmanager_config())
    return files
