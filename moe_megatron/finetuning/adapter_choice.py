"""Which matrices get adapters, and of what rank, in the words of people and by what a task uses.

It turns names such as expert_fc1 into selectors, and a routing profile into ranks. It does not know
how adapters are trained.
"""

import re
from collections.abc import Mapping, Sequence

from moe_megatron.config import RunConfig
from moe_megatron.config.adapter import ADAPTABLE
from moe_megatron.config.arguments import shown
from moe_megatron.config.checks import nearest
from moe_megatron.config.parameter_roles import ROLES
from moe_megatron.config.selector import Selector
from moe_megatron.errors import ConfigError
from moe_megatron.finetuning.used_experts import (
    UsedExperts,
    counts_of_layers,
    most_used_experts,
    used_experts,
)
from moe_megatron.telemetry.values.profile import RoutingProfile

ADAPTER_RATE = 2e-4
"""Learning rate of adapters unless somebody gives another one: ten times that of whole matrices."""

TARGET_MODULES: Mapping[str, str] = {
    "expert_fc1": "*.mlp.experts.*.linear_fc1.weight",
    "expert_fc2": "*.mlp.experts.*.linear_fc2.weight",
    "shared_expert_fc1": "*.shared_experts.linear_fc1.weight",
    "shared_expert_fc2": "*.shared_experts.linear_fc2.weight",
    "attention_qkv": "*.self_attention.linear_qkv.weight",
    "attention_proj": "*.self_attention.linear_proj.weight",
    "mlp_fc1": "*.mlp.linear_fc1.weight",
    "mlp_fc2": "*.mlp.linear_fc2.weight",
}
"""Names of matrices, and selectors of them. The first one of experts is that of gate and up
projection, which are one matrix."""

_EXPERTS = ("expert_fc1", "expert_fc2")
_RULE = re.compile(r"(top|cumulative):(\d+(?:\.\d*)?)(%?)")
_MOST_TIMES = 4
"""The largest rank by usage, in multiples of the mean."""


def selectors_of(targets: Sequence[str]) -> list[str]:
    """Selectors of what is named.

    Args:
        targets: Keys of `TARGET_MODULES`, or selectors.

    Raises:
        ConfigError: One is neither.
    """
    if isinstance(targets, str) or not targets:
        raise ConfigError(
            f"target_modules ({shown(targets)}) must be a list of names, such as "
            "['expert_fc1', 'expert_fc2']."
        )
    found = []
    for text in map(str, targets):
        try:
            found.append(TARGET_MODULES.get(text) or str(Selector.read(text)))
        except ConfigError:
            hint = nearest(text, [*TARGET_MODULES, *ROLES])
            hint = hint or f" Known are: {', '.join(TARGET_MODULES)}, and selectors."
            raise ConfigError(f"target_modules names no matrices: '{text}'.{hint}") from None
    return found


def on_experts(targets: Sequence[str], chosen: Sequence[UsedExperts]) -> list[str]:
    """Selectors of the targets, with the chosen experts in place of all.

    Args:
        targets: Keys of `TARGET_MODULES`, or selectors.
        chosen: The experts of each layer.
    """
    of_experts = [it for it in targets if it in _EXPERTS]
    others = [it for it in targets if it not in (*_EXPERTS, "experts")]
    found = selectors_of(others) if others else []
    if "experts" in targets or len(of_experts) == len(_EXPERTS):
        return [*found, *(it.selector for it in chosen)]
    names = [TARGET_MODULES[it].rpartition("*")[2] for it in of_experts]
    return found + [
        f"decoder.layers.{it.layer - 1}.mlp.experts.local_experts.{expert}{name}"
        for it in chosen
        for expert in sorted(it.experts)
        for name in names
    ]


def used_targets(config: RunConfig, chosen: Sequence[UsedExperts]) -> list[str]:
    """Selectors of a run's targets, with the chosen experts in place of all.

    Args:
        config: The run, which has adapters.
        chosen: The experts of each layer.
    """
    lacking = () if config.moe.shared_expert_hidden_size else ("shared_experts",)
    there = [it for it in ADAPTABLE if it not in lacking]
    return on_experts(config.adapter.targets or there, chosen)


def chosen_experts(rule: str, profile: RoutingProfile) -> tuple[UsedExperts, ...]:
    """The experts that a rule chooses.

    Args:
        rule: `top:25%` for this part of each layer's experts, those with the most tokens; or
            `cumulative:0.2` for the fewest with this share of the tokens.
        profile: Routing of the task's data.

    Raises:
        ConfigError: The rule is none, or the profile has no tokens.
    """
    kind, value = check_rule(rule)
    choose = most_used_experts if kind == "top" else used_experts
    return choose(profile, value)


def check_rule(rule: str) -> tuple[str, float]:
    """The kind of a rule and its number.

    Raises:
        ConfigError: It is none.
    """
    match = _RULE.fullmatch(str(rule))
    value = float(match[2]) / (100 if match[3] else 1) if match else 0.0
    if match is None or not 0 < value <= 1:
        raise ConfigError(
            f"experts ({shown(rule)}) must be a rule such as 'top:25%', a part of each layer's "
            "experts, or 'cumulative:0.2', a share of its tokens."
        )
    return match[1], value


def ranks_by_usage(profile: RoutingProfile, rank: int, largest: int) -> list[str]:
    """Ranks of experts by what of their layer's tokens they got, as `adapter.ranks` takes them.

        r_e = round(r E n_e / sum_e n_e),  at least 1, at most 4 r and the size of the matrices

    so that a layer has about as many trained numbers as with rank r for all.

    Args:
        profile: Routing of the task's data.
        rank: The mean rank r.
        largest: The largest rank that fits the matrices.

    Raises:
        ConfigError: A layer had no tokens.
    """
    found = []
    for layer, counts_E in counts_of_layers(profile):
        shares_E = counts_E / counts_E.sum()
        ranks_E = (
            (rank * len(counts_E) * shares_E).round().clip(1, min(_MOST_TIMES * rank, largest))
        )
        for own in sorted({int(it) for it in ranks_E}):
            experts = tuple(i for i, it in enumerate(ranks_E) if int(it) == own)
            found.append(f"{Selector('experts', (layer,), experts)}={own}")
    return found
