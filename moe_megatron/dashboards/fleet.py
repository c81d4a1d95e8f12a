"""The dashboard "MoE fleet": all runs of a cluster beside each other."""

from moe_megatron.dashboards.judgements import (
    BUSIEST_EXPERT,
    CHECKPOINT_AGE,
    GOODPUT,
    STEP_AGE,
    UP,
)
from moe_megatron.dashboards.layout import Dashboard, Section, run_link, runs_variable
from moe_megatron.dashboards.panels import Column, Query, lines, summary
from moe_megatron.dashboards.queries import RUNS, last, latest, rate, ratio, youngest

_RUN = "{{run}}"
# The value and not its increase, as a resumed run is a new series to Prometheus.
_LOST = last("moe_lost_seconds_total", "run", "reason", matchers=RUNS)


def _latest(name: str, *by: str) -> str:
    return latest(name, "run", *by, matchers=RUNS)


def _rate(name: str) -> str:
    return rate(name, "run", matchers=RUNS)


def _age(name: str) -> str:
    return youngest(name, "run", matchers=RUNS)


_TABLE = summary(
    "Runs",
    "Every run that serves metrics, and those that should (up 0) but were killed or cannot be "
    "reached; `moe-megatron uptime RUN` says which. A click on a run opens its dashboard.",
    Column("up", "none", f"max by (run) (up{{{RUNS}}})", UP),
    Column("step", "locale", _latest("moe_train_step")),
    Column(
        "progress",
        "percentunit",
        ratio(_latest("moe_train_step"), _latest("moe_train_planned_steps"), "run"),
    ),
    Column(
        "last step ended",
        "s",
        _age("moe_train_last_step_age_seconds"),
        STEP_AGE,
    ),
    Column("checkpoint saved", "s", _age("moe_checkpoint_age_seconds"), CHECKPOINT_AGE),
    Column("starts", "locale", _latest("moe_attempt")),
    Column(
        "goodput",
        "percentunit",
        _latest("moe_goodput_ratio"),
        GOODPUT,
    ),
    Column("loss", "none", _latest("moe_train_lm_loss")),
    Column("tokens per second", "locale", _rate("moe_train_tokens_total")),
    Column(
        "busiest expert",
        "suffix:x",
        _latest("moe_expert_load_max_ratio"),
        BUSIEST_EXPERT,
    ),
    lines_by="run",
    link=run_link(),
    height=9,
)

_SPEED = [
    lines(
        "Loss",
        "none",
        "Language model loss, in nats per token.",
        Query(_latest("moe_train_lm_loss"), _RUN),
    ),
    lines(
        "Tokens per second",
        "count:tok/s",
        "Tokens of all batches per second, including pauses for evaluation and checkpoints.",
        Query(_rate("moe_train_tokens_total"), _RUN),
    ),
    lines(
        "Tokens per second and device",
        "count:tok/s",
        "Comparable between runs on different numbers of devices of one kind.",
        Query(f"{_rate('moe_train_tokens_total')} / on (run) {_latest('moe_train_devices')}", _RUN),
    ),
    lines(
        "Last step ended",
        "s",
        "Time since the last step ended. It grows while a run hangs.",
        Query(_age("moe_train_last_step_age_seconds"), _RUN),
    ),
]

_TIME = [
    lines(
        "Goodput",
        "percentunit",
        "Time of the steps that were kept over the time since the run was first launched.",
        Query(_latest("moe_goodput_ratio"), _RUN),
    ),
    lines(
        "Lost time, all runs together",
        "s",
        "Time lost since each run was first launched, by kind: docs/uptime.md says what each is. "
        "What a restart costs shows as a stair when the run is back.",
        Query(f"sum by (reason) ({_LOST})", "{{reason}}"),
        stacked=True,
    ),
    lines(
        "Lost time by run",
        "s",
        "Time lost since the run was first launched, of all kinds together.",
        Query(f"sum by (run) ({_LOST})", _RUN),
    ),
    lines(
        "Age of the newest checkpoint",
        "s",
        "Time that a crash now would lose. No data means that the run saves no checkpoints.",
        Query(_age("moe_checkpoint_age_seconds"), _RUN),
    ),
]

_HEALTH = [
    lines(
        "Busiest expert of all layers",
        "suffix:x",
        "In fair shares. With expert parallelism the other ranks wait for its rank.",
        Query(_latest("moe_expert_load_max_ratio"), _RUN),
    ),
    lines(
        "Load entropy of the most uneven layer",
        "percentunit",
        "Entropy of the experts' load over its maximum: 100 % is even, below 60 % is collapse.",
        Query(f"min by (run) ({_latest('moe_load_entropy_ratio', 'layer')})", _RUN),
    ),
    lines(
        "Slowest process over median",
        "suffix:x",
        "Compute time of the slowest process over the median of all; 1 means no straggler.",
        Query(_latest("moe_rank_compute_max_ratio"), _RUN),
    ),
    lines(
        "Gradient norm",
        "none",
        "Global gradient norm before clipping.",
        Query(_latest("moe_train_grad_norm"), _RUN),
    ),
]

FLEET = Dashboard(
    uid="moe-fleet",
    title="MoE fleet",
    description="Several runs compared: state, speed, loss, lost time, balance.",
    sections=(
        Section("Runs", [_TABLE]),
        Section("Speed and loss", _SPEED),
        Section("Where the time goes", _TIME),
        Section("Health", _HEALTH),
    ),
    scope=RUNS,
    variables=(runs_variable(),),
)
