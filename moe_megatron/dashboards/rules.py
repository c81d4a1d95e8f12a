"""Recording and alerting rules for Prometheus, with their thresholds as parameters.

Alerts keep the labels job, cluster, run and, where it matters, layer. They do not keep the machine,
so that a run that resumes elsewhere keeps its alerts. Tests run the same rules with all times
shortened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_megatron.dashboards.panels import Json
from moe_megatron.dashboards.queries import select
from moe_megatron.telemetry.exporter.discovery import JOB
from moe_megatron.telemetry.values.collapse import COLLAPSE_ENTROPY

RUNBOOK = "docs/runbook.md"
"""The page with a section for each alert; a site puts the address of its copy in front."""

Severity = Literal["critical", "warning"]

_JOB = f'job="{JOB}"'
_RUN = "job, cluster, run"
_LAYER = f"{_RUN}, layer"
_SINK = f"{_RUN}, sink"
_STEP_SECONDS = "run:moe_train_step_duration_seconds:mean5m"
_DROP_RATIO = "run_layer:moe_tokens_dropped:ratio5m"


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Values at which alerts fire. They are starting points: models differ."""

    collapse_entropy: float = COLLAPSE_ENTROPY
    """Smallest load entropy ratio; below it a layer has collapsed onto few experts."""
    dead_experts: float = 0.02
    """Largest share of a layer's experts that may be dead."""
    entropy_fall: float = 0.8
    """Smallest router entropy, as a factor of its mean over the last half hour."""
    drop_ratio: float = 0.05
    """Largest share of the assignments that may be dropped."""
    drop_factor: float = 3.0
    """Largest share of dropped assignments, as a factor of its mean over the last half hour."""
    stall_steps: float = 10.0
    """Longest time without a step, in mean step times."""
    stall_seconds: float = 120.0
    """Time without a step that is never an alert, in seconds."""
    first_step_seconds: float = 1800.0
    """Longest time until the first step has ended, in seconds."""
    bad_gradients: float = 5.0
    """Most steps with a non-finite gradient in five minutes; fp16 scaling causes a few."""
    straggler_ratio: float = 1.2
    """Largest compute time of the slowest process over the median."""
    checkpoint_seconds: float = 7200.0
    """Largest age of the newest checkpoint, in seconds."""
    time_scale: float = 1.0
    """Factor on all these times and on every window, for tests."""

    def span(self, seconds: float) -> str:
        """A scaled time in Prometheus' notation, such as "5m"."""
        milliseconds = round(seconds * self.time_scale * 1000)
        for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
            if milliseconds % size == 0:
                return f"{milliseconds // size}{unit}"
        return f"{milliseconds}ms"

    def seconds(self, seconds: float) -> str:
        """A scaled time as a number of seconds."""
        return f"{seconds * self.time_scale:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: its name in messages.
        severity: critical should wake someone, warning can wait for the morning.
        expr: PromQL expression that has a result while something is wrong.
        hold: how long that must last before it fires, in unscaled seconds.
        summary: what is wrong with which run.
        action: what to do first.
    """

    name: str
    severity: Severity
    expr: str
    hold: float
    summary: str
    action: str

    @property
    def runbook_url(self) -> str:
        """The section of the runbook about this alert."""
        return f"{RUNBOOK}#{self.name.lower()}"

    @property
    def annotations(self) -> dict[str, str]:
        """The texts that go with the alert."""
        return {"summary": self.summary, "action": self.action, "runbook_url": self.runbook_url}


def recording_rules(limits: Thresholds) -> dict[str, str]:
    """Expressions, by the names under which their results are recorded."""
    window = limits.span(300)

    def grown(name: str, labels: str) -> str:
        return f"sum by ({labels}) (increase({select(name, _JOB)}[{window}]))"

    dropped = grown("moe_tokens_dropped_total", _LAYER)
    return {
        _STEP_SECONDS: (
            f"{grown('moe_train_step_duration_seconds_sum', _RUN)}\n"
            f"/ ({grown('moe_train_step_duration_seconds_count', _RUN)} > 0)"
        ),
        _DROP_RATIO: (f"{dropped}\n/ ({dropped} + {grown('moe_tokens_routed_total', _LAYER)} > 0)"),
    }


def alerts(limits: Thresholds) -> Sequence[Alert]:
    """All alerts, the most urgent first."""
    return (*_run_alerts(limits), *_routing_alerts(limits), _sink_alert(limits))


def _run_alerts(limits: Thresholds) -> Sequence[Alert]:
    since_step = _youngest("moe_train_last_step_age_seconds")
    # The two ages are equal until the first step has ended.
    stepped = f"({since_step} < {_youngest('moe_run_age_seconds')})"
    step_seconds = f"max_over_time({_STEP_SECONDS}[{limits.span(3600)}])"
    window = limits.span(300)
    bad = select("moe_train_nonfinite_total", _JOB)
    bad_loss = bad.replace("}", ',kind="loss"}')
    bad_gradient = bad.replace("}", ',kind="gradient"}')
    return (
        Alert(
            name="MoEExporterDown",
            severity="critical",
            expr=f"max by ({_RUN}) (up{{{_JOB}}}) == 0",
            hold=60,
            summary="{{ $labels.run }}: the run cannot be scraped",
            action="The first process was killed, or its machine or the network failed. "
            "moe-megatron uptime RUN says who died first and why, and how to go on; "
            "logs/launcher.log and logs/rank0.log have more. If the run was ended on purpose, "
            "remove its target file.",
        ),
        Alert(
            name="MoENonFinite",
            severity="critical",
            expr=(
                f"sum by ({_RUN}) (increase({bad_loss}[{window}])) > 0\n"
                f"or sum by ({_RUN}) (increase({bad_gradient}[{window}])) > "
                f"{limits.bad_gradients:g}\n"
                f"or {_latest('moe_train_lm_loss', _RUN)} != "
                f"{_latest('moe_train_lm_loss', _RUN)}"
            ),
            hold=0,
            summary="{{ $labels.run }}: loss or gradients are NaN or infinite",
            action="moe-megatron uptime RUN lists what the run has skipped or rolled back itself; "
            "if losses are finite again, nothing is to be done. Else stop it, and resume it with "
            "--set recovery.on_nonfinite=rollback, which leaves out the data, or with "
            "--set training.learning_rate=... at half its value if the gradient norm grew in the "
            "hour before, or with --set moe.z_loss_coef=... at twice its value if the router "
            "z-loss did.",
        ),
        Alert(
            name="MoETrainingStalled",
            severity="critical",
            expr=(
                f"({since_step} > {limits.seconds(limits.stall_seconds)} and {stepped}\n"
                f"  unless {since_step} <= {limits.stall_steps:g} * {step_seconds})\n"
                f"or ({since_step} > {limits.seconds(limits.first_step_seconds)} unless {stepped})"
            ),
            hold=0,
            summary="{{ $labels.run }}: no step for {{ $value | humanizeDuration }}",
            action="A process hangs, usually in communication or in reading data. Take stacks of "
            "all processes (py-spy dump --pid), look for a machine without load, then restart with "
            "moe-megatron train --resume.",
        ),
        Alert(
            name="MoECheckpointTooOld",
            severity="warning",
            expr=(
                f"{_youngest('moe_checkpoint_age_seconds')} > "
                f"{limits.seconds(limits.checkpoint_seconds)}"
            ),
            hold=60,
            summary="{{ $labels.run }}: newest checkpoint is {{ $value | humanizeDuration }} old",
            action="See whether saving fails (logs/rank0.log, free space) or "
            "checkpoint.save_interval is too long for this step time.",
        ),
        Alert(
            name="MoECheckpointFailed",
            severity="critical",
            expr=f"{_latest('moe_checkpoint_failed', _RUN)} > 0",
            hold=0,
            summary="{{ $labels.run }}: the last checkpoint could not be written",
            action="Training goes on and the next save tries again; a crash before that loses the "
            "steps since the newest checkpoint. See save_failed in events.jsonl of the run folder "
            "for the reason, usually a full disk; free space.",
        ),
        Alert(
            name="MoEStragglerRank",
            severity="warning",
            expr=(f"{_latest('moe_rank_compute_max_ratio', _RUN)} > {limits.straggler_ratio:g}"),
            hold=300,
            summary='{{ $labels.run }}: the slowest process takes {{ printf "%.2f" $value }}x the '
            "median",
            action="Find the slowest process on the dashboard MoE cluster. If the load of the "
            "busiest expert parallel rank is equally high, routing is uneven; otherwise check that "
            "machine's clocks, temperature and other jobs.",
        ),
    )


def _routing_alerts(limits: Thresholds) -> Sequence[Alert]:
    entropy = select("moe_router_entropy_ratio", _JOB)
    past = f"[{limits.span(1800)}] offset {limits.span(300)}"
    return (
        Alert(
            name="MoEExpertCollapse",
            severity="critical",
            expr=f"{_latest('moe_load_entropy_ratio', _LAYER)} < {limits.collapse_entropy:g}",
            hold=120,
            summary="{{ $labels.run }}: layer {{ $labels.layer }} has collapsed onto few experts "
            "(load entropy {{ $value | humanizePercentage }})",
            action="Stop the run and resume from a checkpoint before the fall, with a higher "
            "moe.aux_loss_coef or a lower learning rate.",
        ),
        Alert(
            name="MoEExpertMasked",
            severity="critical",
            expr=f"{_latest('moe_experts_masked', _LAYER)} > 0",
            hold=0,
            summary="{{ $labels.run }}: {{ $value }} of the experts of layer {{ $labels.layer }} "
            "failed and were taken out of routing",
            action="The run goes on without them. See the lines masked in events.jsonl for which "
            "and why; check the memory of the machine that holds them, and resume with "
            "recovery.restore_experts to give them weights again.",
        ),
        Alert(
            name="MoETokenDropSpike",
            severity="warning",
            expr=(
                f"{_DROP_RATIO} > {limits.drop_ratio:g}\n"
                f"and {_DROP_RATIO} > {limits.drop_factor:g} * avg_over_time({_DROP_RATIO}{past})"
            ),
            hold=60,
            summary="{{ $labels.run }}: layer {{ $labels.layer }} drops "
            "{{ $value | humanizePercentage }} of its assignments",
            action="Routing has become uneven, or the data changed. Compare with the load of the "
            "layer; raise moe.capacity_factor or moe.aux_loss_coef.",
        ),
        Alert(
            name="MoERouterEntropyDrop",
            severity="warning",
            expr=(
                f"{_latest('moe_router_entropy_ratio', _LAYER)}\n"
                f"< {limits.entropy_fall:g} * max by ({_LAYER}) (avg_over_time({entropy}{past}))"
            ),
            hold=300,
            summary="{{ $labels.run }}: router entropy of layer {{ $labels.layer }} fell to "
            "{{ $value | humanizePercentage }}",
            action="This is often the beginning of a collapse: watch load entropy and dead experts "
            "of the layer, and keep the checkpoint from before.",
        ),
        Alert(
            name="MoEDeadExperts",
            severity="warning",
            expr=(
                f"{_latest('moe_experts_dead', _LAYER)}\n"
                f"/ ({_latest('moe_experts', _LAYER)} > 0) > {limits.dead_experts:g}"
            ),
            hold=600,
            summary="{{ $labels.run }}: {{ $value | humanizePercentage }} of the experts of layer "
            "{{ $labels.layer }} are dead",
            action="Dead experts rarely come back. Raise moe.aux_loss_coef, or use an "
            "expert bias (moe.expert_bias); see the histogram of the layer for how many are "
            "close to dying.",
        ),
    )


def _sink_alert(limits: Thresholds) -> Alert:
    window = limits.span(300)
    outages = select("moe_sink_outages_total", _JOB)
    dropped = select("moe_sink_dropped_records_total", _JOB)
    return Alert(
        name="MoESinkFailed",
        severity="warning",
        expr=(
            f"{_latest('moe_sink_failed', _SINK)} > 0\n"
            f"or sum by ({_SINK}) (increase({outages}[{window}])) > 0\n"
            f"or sum by ({_SINK}) (increase({dropped}[{window}])) > 0"
        ),
        hold=30,
        summary="{{ $labels.run }}: {{ $labels.sink }} cannot be written or has lost records",
        action="Training goes on. See sink_failed in events.jsonl of the run folder for the "
        "reason, usually a full disk or a folder that was removed; free space. Records of a short "
        "outage are written later, those of a long one are lost.",
    )


def _youngest(name: str) -> str:
    return f"min by ({_RUN}) ({select(name, _JOB)})"


def _latest(name: str, labels: str) -> str:
    return f"max by ({labels}) ({select(name, _JOB)})"


def recording_file(limits: Thresholds) -> Json:
    """Content of the file of recording rules."""
    rules = [{"record": name, "expr": expr} for name, expr in recording_rules(limits).items()]
    return {"groups": [{"name": "moe-recording", "rules": rules}]}


def alert_file(limits: Thresholds) -> Json:
    """Content of the file of alerts."""
    return {"groups": [{"name": "moe-alerts", "rules": [_rule(a, limits) for a in alerts(limits)]}]}


def _rule(alert: Alert, limits: Thresholds) -> Json:
    rule: Json = {"alert": alert.name, "expr": alert.expr}
    if alert.hold:
        rule["for"] = limits.span(alert.hold)
    rule["labels"] = {"severity": alert.severity}
    rule["annotations"] = alert.annotations
    return rule
