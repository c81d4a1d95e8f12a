"""The dashboard "MoE cost": what the run costs, and how much of that was not training.

The price of a device hour is a field of the dashboard. Its default is 1, so that costs are device
hours until someone enters a price.
"""

from moe_megatron.dashboards.judgements import BAD_STEPS, DROPPED_SHARE
from moe_megatron.dashboards.layout import Dashboard, Section, text_variable
from moe_megatron.dashboards.panels import Query, lines, number
from moe_megatron.dashboards.queries import RUN, increase, latest, rate, ratio, youngest

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
            "Devices * hours * price, since the training processes were last started.",
            f"{youngest('moe_run_age_seconds')} * {_PRICE_PER_SECOND}",
        ),
        number(
            "Per hour",
            "currencyUSD",
            "Devices * price.",
            f"{_DEVICES} * $price",
        ),
        number(
            "Per million tokens",
            "currencyUSD",
            "Cost per million tokens at the current speed.",
            ratio(f"1e6 * {_PRICE_PER_SECOND}", rate("moe_train_tokens_total")),
        ),
        number(
            "Until the end",
            "currencyUSD",
            "What the remaining steps will cost at the current speed.",
            ratio(f"{_LEFT} * {_PRICE_PER_SECOND}", rate("moe_train_steps_total")),
        ),
        number(
            "Tokens",
            "locale",
            "Tokens trained on in the selected time range.",
            increase("moe_train_tokens_total", window=_RANGE),
            defaults={"decimals": 0},
        ),
        number(
            "Operations",
            "sci",
            "Floating-point operations of the model in the selected time range.",
            increase("moe_train_model_flops_total", window=_RANGE),
            defaults={"decimals": 2},
        ),
    ],
)

_EFFICIENCY = Section(
    "Efficiency",
    [
        lines(
            "Model FLOP/s per device",
            "flops",
            "Floating-point operations of the model per second and device, without recomputation.",
            Query(f"{rate('moe_train_model_flops_total')} / {_DEVICES}", "FLOP/s"),
        ),
        lines(
            "MFU",
            "percentunit",
            "Model FLOPs utilization: operations per second of the last step over the peak of all "
            "devices. No data means that the peak is not known; set telemetry.peak_tflops.",
            Query(latest("moe_train_mfu_ratio"), "MFU"),
        ),
        lines(
            "Cost per million tokens",
            "currencyUSD",
            "If it rises, the same tokens cost more: look for stragglers and imbalance.",
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
            "Skipped updates",
            "locale",
            "Steps in the selected time range whose update was skipped.",
            increase("moe_train_skipped_steps_total", window=_RANGE),
            width=6,
            defaults=BAD_STEPS,
        ),
        number(
            "Steps at risk",
            "locale",
            "Steps that a crash now would lose.",
            f"{latest('moe_train_step')} - {latest('moe_checkpoint_last_step')}",
            width=6,
        ),
        number(
            "Cost at risk",
            "currencyUSD",
            "What a crash now would lose: time since the newest checkpoint * devices * price.",
            f"{youngest('moe_checkpoint_age_seconds')} * {_PRICE_PER_SECOND}",
            width=6,
        ),
        number(
            "Assignments dropped",
            "percentunit",
            "Share of the assignments in the selected time range that were dropped: their tokens "
            "cost attention but no expert processed them.",
            ratio(
                increase("moe_tokens_dropped_total", window=_RANGE),
                f"{increase('moe_tokens_dropped_total', window=_RANGE)} + "
                f"{increase('moe_tokens_routed_total', window=_RANGE)}",
            ),
            width=6,
            defaults=DROPPED_SHARE,
        ),
        lines(
            "Compute lost to waiting",
            "percentunit",
            "Upper bound on the compute lost to imbalance: 1 - 1 / r, where r is the slowest "
            "process over the median, or the busiest expert parallel rank over its fair share.",
            Query(f"1 - 1 / {latest('moe_rank_compute_max_ratio')}", "for the slowest process"),
            Query(f"1 - 1 / {latest('moe_ep_rank_load_ratio')}", "for the busiest EP rank"),
        ),
        lines(
            "Cost of waiting per hour",
            "currencyUSD",
            "Share of the hourly cost during which processes wait for the slowest one.",
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
        text_variable(
            "price", "Price of a device hour", "In US dollars; 1 shows device hours.", "1"
        ),
    ),
)
