"""How often each expert was used: from the routing profile of a training, or from a trace."""

from pathlib import Path

from moe_megatron.checkpoint.routers import routers_of
from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.policies import Counts
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.router_digest import check_same_routers


def counts_of(profile: RoutingProfile | str | Path | None, store: ExpertStore) -> Counts:
    """Uses of each expert that a profile has counted; none without one.

    Raises:
        CheckpointError: The model's routers cannot be read.
        ConfigError: The profile is of another model, or was counted on other weights.
        DataError: It cannot be read.
    """
    if profile is None:
        return {}
    found, what = profile, "the profile"
    if not isinstance(found, RoutingProfile):
        found, what = RoutingProfile.load(Path(found)), str(profile)
    table, layers = found.tokens_per_expert, tuple(it + 1 for it in store.layers)
    shape = (len(layers), store.experts)
    if table.shape != shape or found.layers != layers or found.top_k != store.top_k:
        raise ConfigError(
            f"the profile has {_model(found.layers, table.shape[1], found.top_k)}, and "
            f"{store.path} has {_model(layers, store.experts, store.top_k)}; give the profile of "
            "this model."
        )
    check_same_routers(found.routers, lambda: routers_of(store.path), what, store.path)
    return {
        (layer, expert): float(table[row, expert])
        for row, layer in enumerate(store.layers)
        for expert in range(store.experts)
    }


def _model(layers: tuple[int, ...], experts: int, top_k: int) -> str:
    """Layers that follow one another are named by the first and the last."""
    numbers = ", ".join(map(str, layers))
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        numbers = f"{layers[0]} to {layers[-1]}"
    return f"{len(layers)} layers of {experts} experts (layers {numbers}; {top_k} for a token)"


def profile_of(trace: Trace, layers: tuple[int, ...]) -> RoutingProfile:
    """The routing profile of what a trace has noted.

    Args:
        trace: Of one pass for each token.
        layers: Numbers of the layers with experts, from 1.
    """
    about = trace.about
    profile = RoutingProfile.empty(layers=layers, num_experts=about.experts, top_k=about.top_k)
    for (row, expert), count in trace.counts().items():
        profile.tokens_per_expert[row, expert] = count
    profile.assigned[:] = profile.tokens_per_expert.sum(axis=1)
    profile.tokens = len(trace.passes)
    profile.routers = dict(about.routers)
    return profile
