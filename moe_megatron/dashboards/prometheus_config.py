"""Configurations of Prometheus and Alertmanager: how runs are found, which alerts hide others."""

from dataclasses import dataclass
from pathlib import Path

from moe_megatron.dashboards.panels import Json
from moe_megatron.telemetry.exporter.discovery import JOB

SCRAPE_INTERVAL = "15s"

_SAMPLE_LIMIT = 10_000
"""Twice what an exporter sends by default: a mistake must not fill the site's Prometheus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrometheusConfig:
    """How Prometheus scrapes and judges.

    Attributes:
        target_files: patterns of files that runs write (telemetry.metrics_discovery_dir, or
            prometheus_targets.json in a run folder).
        rule_files: patterns of rule files.
        alertmanagers: HOST:PORT of each.
        interval: of scrapes and rules.
        discovery_interval: how often target files are read where the file system tells nothing,
            such as NFS and Lustre.
        token_file: bearer token that exporters demand.
        ca_file: certificate authority that exporters with TLS are checked against.
    """

    target_files: tuple[str, ...]
    rule_files: tuple[str, ...] = ()
    alertmanagers: tuple[str, ...] = ()
    interval: str = SCRAPE_INTERVAL
    discovery_interval: str = "30s"
    token_file: Path | None = None
    ca_file: Path | None = None


def prometheus_config(config: PrometheusConfig) -> Json:
    """The file prometheus.yml."""
    job: Json = {
        "job_name": JOB,
        "sample_limit": _SAMPLE_LIMIT,
        "file_sd_configs": [
            {
                "files": list(config.target_files),
                "refresh_interval": config.discovery_interval,
            }
        ],
    }
    if config.token_file is not None:
        job["authorization"] = {"credentials_file": str(config.token_file)}
    if config.ca_file is not None:
        job["tls_config"] = {"ca_file": str(config.ca_file)}
    whole: Json = {
        "global": {"scrape_interval": config.interval, "evaluation_interval": config.interval},
        "rule_files": list(config.rule_files),
        "scrape_configs": [job],
    }
    if config.alertmanagers:
        targets = [{"targets": list(config.alertmanagers)}]
        whole["alerting"] = {"alertmanagers": [{"static_configs": targets}]}
    return whole


def alertmanager_config(webhook: str | None = None, group_wait: str = "30s") -> Json:
    """The file alertmanager.yml: one message a run, and no alert that only follows from another.

    Args:
        webhook: Where alerts are sent; None sends them nowhere, for a site to fill in.
        group_wait: How long further alerts of the run are waited for.
    """
    receiver: Json = {"name": "moe"}
    if webhook is not None:
        receiver["webhook_configs"] = [{"url": webhook, "send_resolved": False}]
    return {
        "route": {
            "receiver": "moe",
            "group_by": ["cluster", "run"],
            "group_wait": group_wait,
            "group_interval": "5m",
            "repeat_interval": "4h",
        },
        "receivers": [receiver],
        "inhibit_rules": [
            _hides("MoEExpertCollapse", "MoEDeadExperts|MoERouterEntropyDrop", "layer"),
            _hides("MoETrainingStalled", "MoECheckpointTooOld|MoEStragglerRank"),
            # After a NaN, routing means nothing.
            _hides(
                "MoENonFinite",
                "MoEExpertCollapse|MoEDeadExperts|MoERouterEntropyDrop|MoETokenDropSpike",
            ),
        ],
    }


def _hides(cause: str, consequences: str, *same: str) -> Json:
    return {
        "source_matchers": [f'alertname="{cause}"'],
        "target_matchers": [f'alertname=~"{consequences}"'],
        "equal": ["cluster", "run", *same],
    }
