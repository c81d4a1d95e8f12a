"""The dashboard "MoE routing": how balanced every layer is, and which ones are not."""

from moe_megatron.dashboards.layout import Dashboard, Section, layer_link
from moe_megatron.dashboards.panels import Query, bands, heatmap, lines, number, thresholds
from moe_megatron.dashboards.quantities import shown_quantities
from moe_megatron.dashboards.queries import increase, latest, rate, ratio

_LAYER = "layer {{layer}}"

_HIGH_IS_GOOD = thresholds((0.6, "orange"), (0.8, "yellow"), (0.9, "green"), base="red")
_LOW_IS_GOOD = thresholds((1.5, "yellow"), (2.0, "orange"), (4.0, "red"))
_NONE_IS_GOOD = thresholds((0.001, "yellow"), (0.02, "orange"), (0.1, "red"))

_DROPPED = ratio(
    rate("moe_tokens_dropped_total"),
    f"{rate('moe_tokens_dropped_total')} + {rate('moe_tokens_routed_total')}",
)

_WORST = Section(
    "The worst layer",
    [
        number(
            "Load entropy",
            "percentunit",
            "Entropy of the experts' load over its maximum, in the most uneven layer. Below 60 % a "
            "few experts do all the work.",
            f"min({latest('moe_load_entropy_ratio', 'layer')})",
            width=6,
            defaults=_HIGH_IS_GOOD,
        ),
        number(
            "Busiest expert",
            "suffix:x",
            "Load of the busiest expert of all layers, in fair shares. With expert parallelism the "
            "other ranks wait for its rank.",
            latest("moe_expert_load_max_ratio"),
            width=6,
            defaults=_LOW_IS_GOOD,
        ),
        number(
            "Dead experts",
            "percentunit",
            "Share of the experts of all layers that no token has reached in the last 100 steps.",
            ratio(
                f"sum({latest('moe_experts_dead', 'layer')})",
                f"sum({latest('moe_experts', 'layer')})",
            ),
            width=6,
            defaults=_NONE_IS_GOOD,
        ),
        number(
            "Dropped",
            "percentunit",
            "Share of the assignments of all layers that were dropped because the expert was full.",
            _DROPPED,
            width=6,
            defaults=_NONE_IS_GOOD,
        ),
    ],
)

_BALANCE = Section(
    "Balance by layer",
    [
        bands(
            "Load entropy",
            "percentunit",
            "Entropy of the experts' load over its maximum: 100 % is even, below 60 % is collapse.",
            Query(latest("moe_load_entropy_ratio", "layer"), _LAYER),
            colours={**_HIGH_IS_GOOD, **layer_link()},
        ),
        bands(
            "Busiest expert",
            "suffix:x",
            "Load of the busiest expert of each layer, in fair shares.",
            Query(latest("moe_expert_load_max_ratio", "layer"), _LAYER),
            colours={**_LOW_IS_GOOD, **layer_link()},
        ),
        bands(
            "Dead experts",
            "percentunit",
            "Share of the layer's experts that got less than 1 % of a fair share in the last step.",
            Query(
                ratio(latest("moe_experts_dead", "layer"), latest("moe_experts", "layer"), "layer"),
                _LAYER,
            ),
            colours={**_NONE_IS_GOOD, **layer_link()},
        ),
        bands(
            "Dropped",
            "percentunit",
            "Share of the assignments of the last step that were dropped because the expert was "
            "full.",
            Query(latest("moe_tokens_dropped_ratio", "layer"), _LAYER),
            colours={**_NONE_IS_GOOD, **layer_link()},
        ),
        lines(
            "Least busy expert",
            "suffix:x",
            "Load of the least busy expert of each layer, in fair shares: 1 is even, 0 is dead.",
            Query(latest("moe_expert_load_min_ratio", "layer"), _LAYER),
            defaults=layer_link(),
        ),
        lines(
            "Spread of the load",
            "suffix:x",
            "Standard deviation of the load of a layer's experts, in fair shares: 0 is even.",
            Query(latest("moe_expert_load_stddev_ratio", "layer"), _LAYER),
            defaults=layer_link(),
        ),
        lines(
            "Imbalance across layers",
            "suffix:x",
            "Load of the busiest expert in the best (min), the middle (p50) and the worst (max) of "
            "all layers; 90 % of the layers are below p90. A mean would hide one bad layer.",
            Query(latest("moe_layer_imbalance_ratio", "stat"), "{{stat}}"),
        ),
        heatmap(
            "Load of all experts of all layers",
            "suffix:x",
            "Number of experts at each load, in fair shares. A narrow band around 1 is balance; a "
            "band at 0 shows dead experts.",
            increase("moe_expert_load_ratio_bucket", "le"),
        ),
    ],
)

_COUNTS = [
    lines(
        "Assignments per second",
        "suffix: /s",
        "Assignments of tokens to experts, all layers together.",
        Query(rate("moe_tokens_routed_total"), "reached an expert"),
        Query(rate("moe_tokens_dropped_total"), "dropped"),
    ),
    lines(
        "Experts per token",
        "none",
        "Mean number of experts that the router selected per token, including dropped assignments. "
        "It is constant unless the router gives tokens different numbers of experts.",
        Query(latest("moe_experts_per_token", "layer"), _LAYER),
        defaults=layer_link(),
    ),
]


def routing_dashboard() -> Dashboard:
    """The dashboard, with a panel for every quantity that has a gauge."""
    quantities = [
        lines(
            shown.title,
            shown.unit,
            shown.description,
            Query(latest(shown.gauge, "layer"), _LAYER),
            defaults=layer_link(),
        )
        for shown in shown_quantities()
    ]
    return Dashboard(
        uid="moe-routing",
        title="MoE routing",
        description="Balance of the experts in every layer of one run.",
        sections=(_WORST, _BALANCE, Section("Routers", [*quantities, *_COUNTS])),
    )
