"""The dashboard "MoE cost": what the run costs, and what part of it was no training.

The price of a device hour is a field of the dashboard; its default is 1, so that costs read as
device hours until someone enters one.
"""

from moe_megatron.dashboards.layout import Dashboard, Section, text_variable
from moe_megatron.dashboards.panels import Query, lines, number, thresholds
from moe_megatron.dashboards.queries import RUN, age, increase, latest, rate, ratio

_RANGE = "$__range"
_DEVICES = latest("moe_train_devices")
_PRICE_PER_SECOND = f"{_DEVICES} * $price / 3600"
_LEFT = f"({latest('moe_train_planned_steps')} - {latest('moe_train_step')})"
_PHASES = "moe_train_phase_seconds_total"

_MONEY = Section(
    "Cost",
    [
        number(
            "Since the start",
            "currencyUSD",
            "Devices times hours times price, since the training processes were last started.",
            f"({age('moe_run_start_timestamp_seconds')}) * {_PRICE_PER_SECOND}",
        ),
        number(
            "Per hour",
            "currencyUSD",
            "Devices times price.",
            f"{_DEVICES} * $price",
        ),
        number(
            "Per million tokens",
            "currencyUSD",
            "At the speed of the chosen window.",
            ratio(f"1e6 * {_PRICE_PER_SECOND}", rate("moe_train_tokens_total")),
        ),
        number(
            "Until the end",
            "currencyUSD",
            "What the remaining steps will cost at the speed of the chosen window.",
            ratio(f"{_LEFT} * {_PRICE_PER_SECOND}", rate("moe_train_steps_total")),
        ),
        number(
            "Tokens",
            "locale",
            "Tokens trained on in the chosen range.",
            increase("moe_train_tokens_total", window=_RANGE),
        ),
        number(
            "Operations",
            "sci",
            "Floating-point operations of the model in the chosen range.",
            increase("moe_train_model_flops_total", window=_RANGE),
        ),
    ],
)

_EFFICIENCY = Section(
    "Efficiency",
    [
        lines(
            "Model FLOP/s per device",
            "flops",
            "Floating-point operations of the model per second and device; recomputation is not in "
            "it.",
            Query(f"{rate('moe_train_model_flops_total')} / {_DEVICES}", "FLOP/s"),
        ),
        lines(
            "MFU",
            "percentunit",
            "Operations of the last step over what all devices could do in its time. Without data "
            "the peak of the device is not known; telemetry.peak_tflops gives it.",
            Query(latest("moe_train_mfu_ratio"), "MFU"),
        ),
        lines(
            "Cost per million tokens",
            "currencyUSD",
            "A level that rises means that the same tokens cost more: look for stragglers and "
            "imbalance.",
            Query(ratio(f"1e6 * {_PRICE_PER_SECOND}", rate("moe_train_tokens_total")), "cost"),
        ),
        lines(
            "Time not spent training",
            "percentunit",
            "Wall time of the first process outside forward, backward and optimizer.",
            Query(
                "1 - "
                + ratio(
                    rate(_PHASES, matchers=f'{RUN},phase=~"forward_backward|optimizer"'),
                    rate(_PHASES),
                ),
                "not training",
            ),
        ),
    ],
)

_WASTE = Section(
    "Waste",
    [
        number(
            "Updates thrown away",
            "locale",
            "Steps of the chosen range whose update was skipped.",
            increase("moe_train_skipped_steps_total", window=_RANGE),
            width=6,
            defaults=thresholds((1, "orange")),
        ),
        number(
            "Steps at risk",
            "locale",
            "Steps that a crash would lose now.",
            f"{latest('moe_train_step')} - {latest('moe_checkpoint_last_step')}",
            width=6,
        ),
        number(
            "Cost at risk",
            "currencyUSD",
            "What a crash would lose now: time since the newest checkpoint, priced.",
            f"({age('moe_checkpoint_last_success_timestamp_seconds')}) * {_PRICE_PER_SECOND}",
            width=6,
        ),
        number(
            "Assignments dropped",
            "percentunit",
            "Of the chosen range: routed, paid for in attention, and dropped before the expert.",
            ratio(
                increase("moe_tokens_dropped_total", window=_RANGE),
                f"{increase('moe_tokens_dropped_total', window=_RANGE)} + "
                f"{increase('moe_tokens_routed_total', window=_RANGE)}",
            ),
            width=6,
            defaults=thresholds((0.01, "orange"), (0.1, "red")),
        ),
        lines(
            "Devices that wait for the busiest",
            "percentunit",
            "Bound on the compute lost to imbalance: 1 - 1 / (busiest over fair or median).",
            Query(f"1 - 1 / {latest('moe_rank_compute_max_ratio')}", "for the slowest process"),
            Query(f"1 - 1 / {latest('moe_ep_rank_load_ratio')}", "for the busiest EP rank"),
        ),
        lines(
            "Cost of waiting per hour",
            "currencyUSD",
            "The part of the hourly cost in which processes wait for the slowest one.",
            Query(
                f"{_DEVICES} * $price * (1 - 1 / {latest('moe_rank_compute_max_ratio')})",
                "waiting",
            ),
        ),
    ],
)

COST = Dashboard(
    uid="moe-cost",
    title="MoE cost",
    description="What one run costs, and how much of it was not training.",
    sections=(_MONEY, _EFFICIENCY, _WASTE),
    variables=(
        text_variable("price", "Price of a device hour", "In US dollars; 1 counts hours.", "1"),
    ),
)
