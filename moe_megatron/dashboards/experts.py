"""The dashboard "MoE experts": the experts of one layer.

Panels of single experts need `telemetry.metrics_expert_detail` topk or full; the default,
histogram, fills the others.
"""

from moe_megatron.dashboards.judgements import (
    BUSIEST_EXPERT,
    DEAD_SHARE,
    DROPPED_SHARE,
    LOAD_ENTROPY,
    NEVER,
)
from moe_megatron.dashboards.layout import (
    LAYER_DASHBOARD,
    Dashboard,
    Section,
    layer_variable,
)
from moe_megatron.dashboards.panels import Json, Query, bands, heatmap, lines, number
from moe_megatron.dashboards.quantities import shown_quantities
from moe_megatron.dashboards.queries import (
    RUN,
    chosen,
    increase,
    latest,
    range_increase,
    rate,
    ratio,
)

_ONE = f'{RUN},layer="$layer"'
_BUSIEST = 12
_NARROW = 3
"""Width of the numbers at the top, which stand in one line."""
_BY_NUMBER: Json = {"color": {"mode": "continuous-BlPu"}, "decimals": 0}
"""Colours of bands whose values are numbers of experts: no number is better than another."""

_TOPK = "Needs telemetry.metrics_expert_detail topk or full."
_FULL = "Needs telemetry.metrics_expert_detail full."


def _of_layer(name: str, *by: str) -> str:
    return latest(name, *by, matchers=_ONE)


def _rate(name: str, *by: str) -> str:
    return rate(name, *by, matchers=_ONE)


def _by_tokens(choice: str) -> str:
    """Assignments per second of the experts with most or fewest in the time range."""
    name = "moe_expert_tokens_total"
    of = range_increase(name, "expert", matchers=_ONE)
    return chosen(_rate(name, "expert"), "expert", f"{choice}({_BUSIEST}, {of})")


def _layer() -> Section:
    return Section(
        "Layer $layer",
        [
            number(
                "Experts",
                "locale",
                "Experts of the layer.",
                _of_layer("moe_experts"),
                width=_NARROW,
                graph=False,
            ),
            number(
                "Dead experts",
                "percentunit",
                "Share of the layer's experts that no token has reached in the last 100 steps.",
                ratio(_of_layer("moe_experts_dead"), _of_layer("moe_experts")),
                width=_NARROW,
                defaults=DEAD_SHARE,
            ),
            number(
                "Masked",
                "locale",
                "Experts taken out of routing because they failed.",
                _of_layer("moe_experts_masked"),
                width=_NARROW,
                defaults=NEVER,
            ),
            number(
                "Load entropy",
                "percentunit",
                "Entropy of the experts' load over its maximum: 100 % is even.",
                _of_layer("moe_load_entropy_ratio"),
                width=_NARROW,
                defaults=LOAD_ENTROPY,
            ),
            *(
                number(
                    shown.title,
                    shown.unit,
                    shown.description,
                    _of_layer(shown.gauge),
                    width=_NARROW,
                )
                for shown in shown_quantities()
                if shown.in_tables
            ),
            number(
                "Busiest expert",
                "suffix:x",
                "Load of the busiest expert, in fair shares.",
                _of_layer("moe_expert_load_max_ratio"),
                width=_NARROW,
                defaults=BUSIEST_EXPERT,
            ),
            number(
                "Dropped",
                "percentunit",
                "Share of the assignments of the last step that were dropped because the expert "
                "was full.",
                _of_layer("moe_tokens_dropped_ratio"),
                width=_NARROW,
                defaults=DROPPED_SHARE,
            ),
            heatmap(
                "Load of the experts",
                "suffix:x",
                "Number of experts of the layer at each load, in fair shares.",
                increase("moe_expert_load_ratio_bucket", "le", matchers=_ONE),
            ),
            lines(
                "Range of the load",
                "suffix:x",
                "Busiest, mean and least busy expert, in fair shares. The mean is that of the "
                "histogram: 1 unless steps were missed.",
                Query(_of_layer("moe_expert_load_max_ratio"), "busiest"),
                Query(
                    ratio(_rate("moe_expert_load_ratio_sum"), _rate("moe_expert_load_ratio_count")),
                    "mean",
                ),
                Query(_of_layer("moe_expert_load_min_ratio"), "least busy"),
                width=8,
            ),
            lines(
                "Busiest expert of each task",
                "suffix:x",
                "Load of the busiest expert by the tokens of a task, in fair shares: high where a "
                "task has experts of its own. Needs data.tasks.",
                Query(_of_layer("moe_task_load_max_ratio", "task"), "{{task}}"),
                width=8,
            ),
            lines(
                "Assignments per second",
                "count:/s",
                "Assignments of tokens to the layer's experts.",
                Query(_rate("moe_tokens_routed_total"), "reached an expert"),
                Query(_rate("moe_tokens_dropped_total"), "dropped"),
                width=8,
            ),
        ],
    )


_EXTREMES = Section(
    "Extremes",
    [
        lines(
            "Load of the busiest experts",
            "suffix:x",
            f"In fair shares; position 1 is the busiest. {_TOPK}",
            Query(_of_layer("moe_expert_load_top_ratio", "position"), "position {{position}}"),
        ),
        bands(
            "Which experts are busiest",
            "none",
            f"Numbers of the experts; a long band means that it stays the same expert. {_TOPK}",
            Query(_of_layer("moe_expert_load_top_expert", "position"), "position {{position}}"),
            colours=_BY_NUMBER,
            names=True,
        ),
        lines(
            "Load of the least busy experts",
            "suffix:x",
            f"In fair shares; position 1 is the least busy. {_TOPK}",
            Query(_of_layer("moe_expert_load_bottom_ratio", "position"), "position {{position}}"),
        ),
        bands(
            "Which experts are least busy",
            "none",
            f"Numbers of the experts; a long band means that it stays the same expert. {_TOPK}",
            Query(_of_layer("moe_expert_load_bottom_expert", "position"), "position {{position}}"),
            colours=_BY_NUMBER,
            names=True,
        ),
    ],
)

_EVERY = Section(
    "Every expert",
    [
        lines(
            f"The {_BUSIEST} busiest experts",
            "count:/s",
            f"Assignments to each expert, without dropped ones, over the time range. {_FULL}",
            Query(
                _by_tokens("topk"),
                "expert {{expert}}",
            ),
        ),
        lines(
            f"The {_BUSIEST} least busy experts",
            "count:/s",
            f"Assignments to each expert, without dropped ones, over the time range. {_FULL}",
            Query(
                _by_tokens("bottomk"),
                "expert {{expert}}",
            ),
        ),
    ],
    collapsed=True,
)


def experts_dashboard() -> Dashboard:
    """The dashboard, with a number for every quantity of the load tables."""
    return Dashboard(
        uid=LAYER_DASHBOARD,
        title="MoE experts",
        description="The experts of one layer of one run.",
        sections=(_layer(), _EXTREMES, _EVERY),
        variables=(layer_variable(),),
    )
