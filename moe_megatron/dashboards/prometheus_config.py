"""Configurations of Prometheus and Alertmanager: how runs are found, which alerts mute others."""

from dataclasses import dataclass
from pathlib import Path

from moe_megatron.dashboards.panels import Json
from moe_megatron.telemetry.exporter.discovery import JOB

SCRAPE_INTERVAL = "15s"

_SAMPLE_LIMIT = 10_000
"""Twice the default limit of an exporter, so that a mistake cannot flood the site's Prometheus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrometheusConfig:
    """How Prometheus scrapes runs and evaluates rules.

    Attributes:
        target_files: patterns of files that runs write (telemetry.metrics_discovery_dir, or
            prometheus_targets.json in a run folder).
        rule_files: patterns of rule files.
        alertmanagers: addresses, HOST:PORT.
        interval: between scrapes, and between evaluations of rules.
        discovery_interval: how often target files are read again, for file systems that do not
            announce changes, such as NFS and Lustre.
        token_file: file with the bearer token that exporters require.
        ca_file: certificate authority that signed the certificates of exporters with TLS.
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
    document: Json = {
        "global": {"scrape_interval": config.interval, "evaluation_interval": config.interval},
        "rule_files": list(config.rule_files),
        "scrape_configs": [job],
    }
    if config.alertmanagers:
        targets = [{"targets": list(config.alertmanagers)}]
        document["alerting"] = {"alertmanagers": [{"static_configs": targets}]}
    return document


def alertmanager_config(webhook: str | None = None, group_wait: str = "30s") -> Json:
    """The file alertmanager.yml: one message per run, without alerts that follow from another.

    Args:
        webhook: Where alerts are sent; None: nowhere, for a site to fill in.
        group_wait: How long to wait for further alerts of the run before sending.
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
            _mutes("MoEExpertCollapse", "MoEDeadExperts|MoERouterEntropyDrop", "layer"),
            _mutes("MoETrainingStalled", "MoECheckpointTooOld|MoEStragglerRank"),
            # After a NaN, routing is meaningless.
            _mutes(
                "MoENonFinite",
                "MoEExpertCollapse|MoEDeadExperts|MoERouterEntropyDrop|MoETokenDropSpike",
            ),
        ],
    }


def _mutes(cause: str, consequences: str, *same: str) -> Json:
    return {
        "source_matchers": [f'alertname="{cause}"'],
        "target_matchers": [f'alertname=~"{consequences}"'],
        "equal": ["cluster", "run", *same],
    }
