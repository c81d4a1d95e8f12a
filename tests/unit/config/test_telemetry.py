"""What the telemetry section refuses."""

import pytest

from moe_megatron.config import load_config
from moe_megatron.config.telemetry import TelemetryConfig
from moe_megatron.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics_port": -1}, r"metrics_port must be 0 \(a free port\) to 65535, not -1"),
        ({"metrics_port": 65536}, "not 65536"),
        ({"metrics_host": ""}, "telemetry.metrics_host must not be empty"),
        ({"cluster": ""}, "telemetry.cluster must not be empty"),
        ({"metrics_max_series": 0}, "metrics_max_series must be at least 1"),
        ({"peak_tflops": 0.0}, "peak_tflops must be greater than 0"),
        ({"metrics_tls_key": "k"}, "belong together; give both, or neither"),
        ({"metrics_tls_certificate": "c"}, "belong together"),
        ({"metrics_expert_detail": "all"}, "'none', 'histogram', 'topk' or 'full', not 'all'"),
    ],
)
def test_wrong_value_is_explained(fields, message):
    with pytest.raises(ConfigError, match=message):
        TelemetryConfig(**fields)


def test_nothing_is_served_unless_asked_for():
    telemetry = load_config("demo_moe").telemetry
    assert telemetry.metrics_port is None
    assert telemetry.metrics_host == "127.0.0.1"
