"""Provisioning files, which tell Grafana at its start where Prometheus and the dashboards are."""

from moe_megatron.dashboards.panels import Json


def datasource(url: str, interval: str) -> Json:
    """The Prometheus data source; its interval determines $__rate_interval."""
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "MoE Prometheus",
                "uid": "moe-prometheus",
                "type": "prometheus",
                "access": "proxy",
                "url": url,
                "isDefault": True,
                "editable": False,
                "jsonData": {"timeInterval": interval, "httpMethod": "POST"},
            }
        ],
    }


def dashboard_provider(folder: str) -> Json:
    """The provider that loads every dashboard in a folder."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "moe-megatron",
                "folder": "MoE",
                "type": "file",
                "allowUiUpdates": False,
                "options": {"path": folder},
            }
        ],
    }
