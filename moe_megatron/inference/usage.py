"""How often each expert was used, from the routing profile of a training."""

from pathlib import Path

from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.policies import Counts
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.telemetry.values.profile import RoutingProfile


def counts_of(profile: RoutingProfile | str | Path | None, store: ExpertStore) -> Counts:
    """Uses of each expert that a profile has counted; none without one.

    Raises:
        ConfigError: The profile is of another model.
        DataError: It cannot be read.
    """
    if profile is None:
        return {}
    found = profile if isinstance(profile, RoutingProfile) else RoutingProfile.load(Path(profile))
    table = found.tokens_per_expert
    if table.shape != (len(store.layers), store.experts):
        raise ConfigError(
            f"the profile has {table.shape[0]} layers of {table.shape[1]} experts, and "
            f"{store.path} has {len(store.layers)} of {store.experts}; give the profile of this "
            "model."
        )
    return {
        (layer, expert): float(table[row, expert])
        for row, layer in enumerate(store.layers)
        for expert in range(store.experts)
    }
