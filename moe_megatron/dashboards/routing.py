"""The dashboard "MoE routing": how balanced every layer is, and which ones are not."""

from moe_megatron.dashboards.judgements import (
    BUSIEST_EXPERT,
    DEAD_SHARE,
    DROPPED_SHARE,
    LOAD_ENTROPY,
)
from moe_megatron.dashboards.layout import Dashboard, Section, layer_link
from moe_megatron.dashboards.panels import (
    Column,
    Panel,
    Query,
    bands,
    heatmap,
    lines,
    number,
    summary,
)
from moe_megatron.dashboards.quantities import shown_quantities
from moe_megatron.dashboards.queries import in_order, increase, latest, rate, ratio

_LAYER = "layer {{layer}}"

_WORST_FIRST = "busiest expert"
_TALL = 22
"""Height of bands of layers, in which 61 names can still be told apart."""


def _of_layers(name: str) -> str:
    return latest(name, "layer")


_DEAD = ratio(_of_layers("moe_experts_dead"), _of_layers("moe_experts"), "layer")


def _range_of_layers(title: str, unit: str, description: str, by_layer: str) -> Panel:
    """Three lines for any number of layers; which layer it is stands in the table of layers."""
    return lines(
        title,
        unit,
        f"{description} Of all layers the highest, the middle and the lowest.",
        Query(f"max({by_layer})", "highest layer"),
        Query(f"quantile(0.5, {by_layer})", "middle layer"),
        Query(f"min({by_layer})", "lowest layer"),
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
            defaults=LOAD_ENTROPY,
        ),
        number(
            "Busiest expert",
            "suffix:x",
            "Load of the busiest expert of all layers, in fair shares. With expert parallelism the "
            "other ranks wait for its rank.",
            latest("moe_expert_load_max_ratio"),
            width=6,
            defaults=BUSIEST_EXPERT,
        ),
        number(
            "Dead experts",
            "percentunit",
            "Share of the experts that no token has reached in the last 100 steps, in the layer "
            "with most of them.",
            f"max({_DEAD})",
            width=6,
            defaults=DEAD_SHARE,
        ),
        number(
            "Dropped",
            "percentunit",
            "Share of the assignments of the last step that were dropped because the expert was "
            "full, in the layer that drops most.",
            f"max({_of_layers('moe_tokens_dropped_ratio')})",
            width=6,
            defaults=DROPPED_SHARE,
        ),
    ],
)

_BY_LAYER = [
    summary(
        "Layers",
        "Newest values, the layer with the busiest expert first: load entropy is that of the "
        "experts' load over its maximum, loads are in fair shares, dead is the share of "
        "experts that no token has reached in the last 100 steps, dropped that of the assignments "
        "of the last step. A click on a layer opens its experts.",
        Column("load entropy", "percentunit", _of_layers("moe_load_entropy_ratio"), LOAD_ENTROPY),
        Column(_WORST_FIRST, "suffix:x", _of_layers("moe_expert_load_max_ratio"), BUSIEST_EXPERT),
        Column("least busy expert", "suffix:x", _of_layers("moe_expert_load_min_ratio")),
        Column("spread of load", "suffix:x", _of_layers("moe_expert_load_stddev_ratio")),
        Column("dead experts", "percentunit", _DEAD, DEAD_SHARE),
        Column("dropped", "percentunit", _of_layers("moe_tokens_dropped_ratio"), DROPPED_SHARE),
        Column("experts per token", "none", _of_layers("moe_experts_per_token")),
        lines_by="layer",
        link=layer_link("${__value.raw}"),
        height=12,
        worst=_WORST_FIRST,
    ),
    bands(
        "Load entropy",
        "percentunit",
        "Entropy of the experts' load over its maximum: 100 % is even, below 60 % is collapse.",
        Query(in_order(_of_layers("moe_load_entropy_ratio"), "layer"), _LAYER),
        colours={**LOAD_ENTROPY, "links": [layer_link()]},
        height=_TALL,
    ),
    bands(
        "Busiest expert",
        "suffix:x",
        "Load of the busiest expert of each layer, in fair shares.",
        Query(in_order(_of_layers("moe_expert_load_max_ratio"), "layer"), _LAYER),
        colours={**BUSIEST_EXPERT, "links": [layer_link()]},
        height=_TALL,
    ),
]

_ACROSS_LAYERS = [
    lines(
        "Imbalance across layers",
        "suffix:x",
        "Load of the busiest expert in the best (min), the middle (p50) and the worst (max) of "
        "all layers; 90 % of the layers are below p90. A mean would hide one bad layer.",
        Query(latest("moe_layer_imbalance_ratio", "stat"), "{{stat}}"),
    ),
    _range_of_layers(
        "Least busy expert",
        "suffix:x",
        "Load of the least busy expert of a layer, in fair shares: 1 is even, 0 is dead.",
        _of_layers("moe_expert_load_min_ratio"),
    ),
    _range_of_layers(
        "Spread of the load",
        "suffix:x",
        "Standard deviation of the load of a layer's experts, in fair shares: 0 is even.",
        _of_layers("moe_expert_load_stddev_ratio"),
    ),
    _range_of_layers(
        "Dead experts by layer",
        "percentunit",
        "Share of a layer's experts that no token has reached in the last 100 steps.",
        _DEAD,
    ),
    _range_of_layers(
        "Dropped by layer",
        "percentunit",
        "Share of a layer's assignments of the last step that were dropped because the expert was "
        "full.",
        _of_layers("moe_tokens_dropped_ratio"),
    ),
    _range_of_layers(
        "Experts per token",
        "none",
        "Mean number of experts that the router selected per token, including dropped assignments. "
        "It is constant unless the router gives tokens different numbers of experts.",
        _of_layers("moe_experts_per_token"),
    ),
    heatmap(
        "Load of all experts of all layers",
        "suffix:x",
        "Number of experts at each load, in fair shares. A narrow band around 1 is balance; a "
        "band at 0 shows dead experts.",
        increase("moe_expert_load_ratio_bucket", "le"),
    ),
]

_COUNTS = [
    lines(
        "Assignments per second",
        "count:/s",
        "Assignments of tokens to experts, all layers together.",
        Query(rate("moe_tokens_routed_total"), "reached an expert"),
        Query(rate("moe_tokens_dropped_total"), "dropped"),
    ),
]


def routing_dashboard() -> Dashboard:
    """The dashboard, with a panel for every quantity that has a gauge."""
    quantities = [
        _range_of_layers(shown.title, shown.unit, shown.description, _of_layers(shown.gauge))
        for shown in shown_quantities()
    ]
    return Dashboard(
        uid="moe-routing",
        title="MoE routing",
        description="Balance of the experts in every layer of one run.",
        sections=(
            _WORST,
            Section("Balance by layer", _BY_LAYER),
            Section("Balance across layers", _ACROSS_LAYERS),
            Section("Routers", [*quantities, *_COUNTS]),
        ),
    )
