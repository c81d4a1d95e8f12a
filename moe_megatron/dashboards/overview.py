"""The dashboard "MoE training": is the run healthy, how fast is it, when will it finish."""

from moe_megatron.dashboards.judgements import BAD_STEPS, GOODPUT, NEVER, STEP_AGE
from moe_megatron.dashboards.layout import Dashboard, Section
from moe_megatron.dashboards.panels import Query, lines, number, table
from moe_megatron.dashboards.queries import (
    RUN,
    increase,
    last,
    latest,
    quantile,
    rate,
    ratio,
    select,
    youngest,
)

_STEPS_LEFT = f"({latest('moe_train_planned_steps')} - {latest('moe_train_step')})"

_NOW = Section(
    "Now",
    [
        number(
            "Step",
            "locale",
            "Last finished global step.",
            latest("moe_train_step"),
        ),
        number(
            "Progress",
            "percentunit",
            "Finished steps over planned steps.",
            ratio(latest("moe_train_step"), latest("moe_train_planned_steps")),
        ),
        number(
            "Time left",
            "s",
            "Time that the remaining steps take at the current speed.",
            ratio(_STEPS_LEFT, rate("moe_train_steps_total")),
        ),
        number(
            "Last step ended",
            "s",
            "Time since the last step ended. It grows while the run hangs.",
            youngest("moe_train_last_step_age_seconds"),
            defaults=STEP_AGE,
        ),
        number(
            "Non-finite steps",
            "locale",
            "Steps in the selected time range whose loss or gradient norm was NaN or infinite. "
            "With fp16 loss scaling, a few with an infinite gradient are normal.",
            increase("moe_train_nonfinite_total", window="$__range"),
            defaults=BAD_STEPS,
        ),
        number(
            "Alerts",
            "locale",
            "Alerts of this run that are firing now (only those of moe_megatron's rules).",
            f'count(ALERTS{{alertname=~"MoE.*",alertstate="firing",{RUN}}}) or vector(0)',
            defaults=NEVER,
        ),
    ],
)

_LEARNING = Section(
    "Learning",
    [
        lines(
            "Loss",
            "none",
            "Language model loss, in nats per token. Gaps are steps without a finite loss.",
            Query(latest("moe_train_lm_loss"), "training"),
            Query(latest("moe_eval_loss", "split"), "{{split}}"),
        ),
        lines(
            "Gradient norm",
            "none",
            "Global gradient norm before clipping. Spikes often precede a diverging loss.",
            Query(latest("moe_train_grad_norm"), "gradient norm"),
        ),
        lines(
            "Learning rate",
            "sci",
            "Learning rate of the last step.",
            Query(latest("moe_train_learning_rate"), "learning rate"),
            defaults={"decimals": 2},
        ),
        lines(
            "Skipped and non-finite steps",
            "locale",
            "Skipped: steps without an optimizer update, because a gradient was not finite. The "
            "other lines count steps whose loss or gradient norm was not finite.",
            Query(increase("moe_train_skipped_steps_total"), "skipped"),
            Query(increase("moe_train_nonfinite_total", "kind"), "non-finite {{kind}}"),
        ),
    ],
)

_SPEED = Section(
    "Speed",
    [
        lines(
            "Tokens per second",
            "count:tok/s",
            "Tokens of all batches per second, including pauses for evaluation and checkpoints.",
            Query(rate("moe_train_tokens_total"), "tokens/s"),
        ),
        lines(
            "Step time",
            "s",
            "Wall time of a step on the first process. The quantiles are estimates from buckets.",
            Query(
                ratio(
                    rate("moe_train_step_duration_seconds_sum"),
                    rate("moe_train_step_duration_seconds_count"),
                ),
                "mean",
            ),
            Query(quantile(0.5, "moe_train_step_duration_seconds"), "median"),
            Query(quantile(0.95, "moe_train_step_duration_seconds"), "95 %"),
        ),
        lines(
            "Where the time goes",
            "percentunit",
            "Share of the first process's wall time in each phase. If they sum to less than 1, a "
            "phase has not ended yet.",
            Query(rate("moe_train_phase_seconds_total", "phase"), "{{phase}}"),
            stacked=True,
        ),
        lines(
            "Tokens per step",
            "locale",
            "Tokens of the last global batch; it grows while the batch size is ramped up.",
            Query(latest("moe_train_tokens_per_step"), "tokens"),
        ),
    ],
)

_RUN = Section(
    "Run",
    [
        table(
            "About this run",
            "The labels of moe_run_info: model, parallel sizes, versions.",
            select("moe_run_info"),
            hide=("Time", "Value", "__name__", "instance", "job"),
        ),
        number(
            "Goodput",
            "percentunit",
            "Time of the steps that were kept over the time since the run was first launched.",
            latest("moe_goodput_ratio"),
            width=12,
            defaults=GOODPUT,
        ),
        number(
            "Starts",
            "locale",
            "How often the processes of the run have been started.",
            latest("moe_attempt"),
            width=12,
        ),
        lines(
            "Lost time",
            "s",
            "Time lost since the first launch, by kind; docs/uptime.md says what each is.",
            Query(last("moe_lost_seconds_total", "reason"), "{{reason}}"),
            width=24,
            stacked=True,
        ),
        lines(
            "Age of the newest checkpoint",
            "s",
            "Time that a crash now would lose. No data means that the run saves no checkpoints.",
            Query(youngest("moe_checkpoint_age_seconds"), "age"),
        ),
        lines(
            "Steps since the newest checkpoint",
            "locale",
            "Steps that a crash now would lose. No data means that the run saves no checkpoints.",
            Query(f"{latest('moe_train_step')} - {latest('moe_checkpoint_last_step')}", "steps"),
        ),
        lines(
            "Saves that failed",
            "locale",
            "Saves of the running processes that could not be written, often for want of room; "
            "the run goes on without them. The other line is 1 until a save succeeds.",
            Query(last("moe_checkpoint_failures_total"), "failed"),
            Query(last("moe_checkpoint_failed"), "the last one failed"),
            width=24,
        ),
    ],
)

OVERVIEW = Dashboard(
    uid="moe-overview",
    title="MoE training",
    description="One training run: loss, speed, progress, checkpoints.",
    sections=(_NOW, _LEARNING, _SPEED, _RUN),
)
