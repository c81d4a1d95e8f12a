"""Unit tests of the alerts for `promtool test rules`: when each fires, and when it does not.

Series are in promtool's notation, one value every 15 seconds: "1x20" is 21 values, so the next one
is at 5m15s. Expected values and summaries are written by hand; only the texts of the recommended
actions are taken from the rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_megatron.dashboards.panels import Json
from moe_megatron.dashboards.rules import Thresholds, alerts
from moe_megatron.telemetry.exporter.discovery import JOB

_TARGET = f'job="{JOB}",cluster="c",instance="node:1"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Firing:
    """An alert that must fire: its summary, run, and layer or sink."""

    summary: str
    run: str = "a"
    layer: str | None = None
    sink: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A test of one alert with the series of one or more runs.

    Attributes:
        alert: name of the alert.
        series: values by metric and its own labels, run included, without the closing brace.
        expected: the alerts that must fire, by time; no others may.
    """

    alert: str
    series: Mapping[str, str]
    expected: Mapping[str, Sequence[Firing]]


_NANS = " ".join(["NaN"] * 40)
_SPIKES = " ".join(["1.5", "1.0"] * 30)

CASES = (
    Case(
        alert="MoEExporterDown",
        series={'up{run="a"': "1x20 0x20", 'up{run="b"': "1x40"},
        expected={
            "6m": [],
            "7m": [Firing(summary="a: the run cannot be scraped")],
        },
    ),
    Case(
        alert="MoENonFinite",
        series={
            'moe_train_nonfinite_total{run="a",kind="loss"': "0x20 1x60",
            # fp16 scaling: three bad gradients are normal, one a step is not.
            'moe_train_nonfinite_total{run="b",kind="gradient"': "0x20 3x60",
            'moe_train_nonfinite_total{run="c",kind="gradient"': "0+1x80",
            'moe_train_lm_loss{run="d"': f"2x20 {_NANS} {_NANS}",
            'moe_train_lm_loss{run="e"': "2x80",
        },
        expected={
            "1m": [],
            "6m": [
                Firing(run=run, summary=f"{run}: loss or gradients are NaN or infinite")
                for run in "acd"
            ],
            "15m": [
                Firing(run=run, summary=f"{run}: loss or gradients are NaN or infinite")
                for run in "cd"
            ],
        },
    ),
    Case(
        alert="MoETrainingStalled",
        series={
            # Steps of 5 s until 10m.
            'moe_run_age_seconds{run="a"': "0+15x140",
            'moe_train_last_step_age_seconds{run="a"': "0 5x38 0+15x100",
            'moe_train_step_duration_seconds_sum{run="a"': "0+15x40 600x100",
            'moe_train_step_duration_seconds_count{run="a"': "0+3x40 120x100",
            # Steps of 60 s until 10m: ten of them are ten minutes.
            'moe_run_age_seconds{run="b"': "0+15x140",
            'moe_train_last_step_age_seconds{run="b"': "0 5x38 0+15x100",
            'moe_train_step_duration_seconds_sum{run="b"': "0+15x40 600x100",
            'moe_train_step_duration_seconds_count{run="b"': "0+0.25x40 10x100",
            # Never made a step.
            'moe_run_age_seconds{run="c"': "0+15x140",
            'moe_train_last_step_age_seconds{run="c"': "0+15x140",
            'moe_train_step_duration_seconds_sum{run="c"': "0x140",
            'moe_train_step_duration_seconds_count{run="c"': "0x140",
        },
        expected={
            "11m": [],
            "14m": [Firing(summary="a: no step for 4m 0s")],
            "21m": [
                Firing(summary="a: no step for 11m 0s"),
                Firing(run="b", summary="b: no step for 11m 0s"),
            ],
            "31m": [
                Firing(summary="a: no step for 21m 0s"),
                Firing(run="b", summary="b: no step for 21m 0s"),
                Firing(run="c", summary="c: no step for 31m 0s"),
            ],
        },
    ),
    Case(
        alert="MoECheckpointTooOld",
        series={
            'moe_checkpoint_age_seconds{run="a"': "0+15x600",
            'moe_checkpoint_age_seconds{run="b"': "0+15x399 0+15x200",
        },
        expected={
            "2h": [],
            "2h45s": [],
            "2h2m": [Firing(summary="a: newest checkpoint is 2h 2m 0s old")],
        },
    ),
    Case(
        alert="MoECheckpointFailed",
        series={
            'moe_checkpoint_failed{run="a"': "0x20 1x20 0x20",
            'moe_checkpoint_failed{run="b"': "0x60",
        },
        expected={
            "5m": [],
            "7m": [Firing(summary="a: the last checkpoint could not be written")],
            "12m": [],
        },
    ),
    Case(
        alert="MoEStragglerRank",
        series={
            'moe_rank_compute_max_ratio{run="a"': "1.05x20 1.5x40",
            'moe_rank_compute_max_ratio{run="b"': _SPIKES,
        },
        expected={
            "10m": [],
            "11m": [Firing(summary="a: the slowest process takes 1.50x the median")],
        },
    ),
    Case(
        alert="MoEExpertCollapse",
        series={
            'moe_load_entropy_ratio{run="a",layer="3"': "0.95x20 0.3x40",
            'moe_load_entropy_ratio{run="a",layer="4"': "0.95x20 0.7x40",
        },
        expected={
            "7m": [],
            "8m": [
                Firing(
                    layer="3",
                    summary="a: layer 3 has collapsed onto few experts (load entropy 30%)",
                )
            ],
        },
    ),
    Case(
        alert="MoEExpertMasked",
        series={
            'moe_experts_masked{run="a",layer="3"': "0x20 1x40",
            'moe_experts_masked{run="a",layer="4"': "0x60",
        },
        expected={
            "4m": [],
            "6m": [
                Firing(
                    layer="3",
                    summary="a: 1 of the experts of layer 3 failed and were taken out of routing",
                )
            ],
        },
    ),
    Case(
        alert="MoETokenDropSpike",
        series={
            'moe_tokens_dropped_total{run="a",layer="3"': "0+10x200 2000+300x40",
            'moe_tokens_routed_total{run="a",layer="3"': "0+990x200 198000+700x40",
            # As many drops from the beginning: bad, but no spike.
            'moe_tokens_dropped_total{run="b",layer="3"': "0+300x240",
            'moe_tokens_routed_total{run="b",layer="3"': "0+700x240",
        },
        expected={
            "50m": [],
            "51m15s": [],
            "57m": [Firing(layer="3", summary="a: layer 3 drops 30% of its assignments")],
        },
    ),
    Case(
        alert="MoERouterEntropyDrop",
        series={
            'moe_router_entropy_ratio{run="a",layer="3"': "0.9x200 0.5x40",
            'moe_router_entropy_ratio{run="a",layer="4"': "0.9-0.001x240",
        },
        expected={
            "54m": [],
            "56m": [Firing(layer="3", summary="a: router entropy of layer 3 fell to 50%")],
        },
    ),
    Case(
        alert="MoEDeadExperts",
        series={
            'moe_experts_dead{run="a",layer="3"': "0x20 4x60",
            'moe_experts{run="a",layer="3"': "64x80",
            'moe_experts_dead{run="a",layer="4"': "0x20 1x60",
            'moe_experts{run="a",layer="4"': "64x80",
        },
        expected={
            "15m": [],
            "16m": [Firing(layer="3", summary="a: 6.25% of the experts of layer 3 are dead")],
        },
    ),
    Case(
        alert="MoESinkFailed",
        series={
            'moe_sink_failed{run="a",sink="history"': "0x20 1x10 0x60",
            # An outage between two scrapes.
            'moe_sink_outages_total{run="b",sink="console"': "0x20 1x70",
            'moe_sink_dropped_records_total{run="c",sink="history"': "7x90",
        },
        expected={
            "5m": [],
            "5m15s": [],
            "6m": [
                Firing(run=run, sink=sink, summary=f"{run}: {sink} {text}")
                for run, sink in (("a", "history"), ("b", "console"))
                for text in ("cannot be written or has lost records",)
            ],
            "20m": [],
        },
    ),
)


def promtool_file() -> Json:
    """The file for promtool."""
    return {
        "rule_files": ["../rules/recording.yml", "../rules/alerts.yml"],
        "evaluation_interval": "15s",
        "tests": [_test(case) for case in CASES],
    }


def _test(case: Case) -> Json:
    rule = next(alert for alert in alerts(Thresholds()) if alert.name == case.alert)

    def expected(firing: Firing) -> Json:
        labels = {"severity": rule.severity, "job": JOB, "cluster": "c", "run": firing.run}
        if firing.layer is not None:
            labels["layer"] = firing.layer
        if firing.sink is not None:
            labels["sink"] = firing.sink
        annotations = rule.annotations | {"summary": firing.summary}
        return {"exp_labels": labels, "exp_annotations": annotations}

    return {
        "name": case.alert,
        "interval": "15s",
        "input_series": [
            {"series": f"{name},{_TARGET}}}", "values": values}
            for name, values in case.series.items()
        ],
        "alert_rule_test": [
            {
                "eval_time": time,
                "alertname": case.alert,
                "exp_alerts": [expected(firing) for firing in firings],
            }
            for time, firings in case.expected.items()
        ],
    }
