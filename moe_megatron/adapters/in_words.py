"""Adapters in words, for a person: how many matrices, of what rank, of which base."""

from pathlib import Path
from typing import Any

from moe_megatron.adapters.low_rank import Adapter
from moe_megatron.adapters.peft_folder import CONFIG, is_adapter_folder, read_folder
from moe_megatron.adapters.run_adapter import read_run_adapter
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.config.parameter_roles import ROLES, role_of
from moe_megatron.errors import CheckpointError


def words_of(adapter: Adapter) -> str:
    """An adapter in a line: "adapters of 24 matrices (16 experts, 8 attention), rank 2 to 4"."""
    found = facts_of(adapter)
    parts = ", ".join(f"{number} {role}" for role, number in found["matrices"].items())
    low, high = found["rank"]
    rank = f"rank {low}" if low == high else f"rank {low} to {high}"
    norms = ", with magnitudes (DoRA)" if found["magnitudes"] else ""
    return f"adapters of {len(adapter)} matrices ({parts}), {rank}{norms}"


def facts_of(adapter: Adapter) -> dict[str, Any]:
    """What an adapter changes, as JSON values."""
    roles = [role_of(place) for place in adapter]
    ranks = [it.rank for it in adapter.values()]
    return {
        "matrices": {role: roles.count(role) for role in ROLES if role in roles},
        "rank": [min(ranks, default=0), max(ranks, default=0)],
        "numbers": sum(it.a.numel() + it.b.numel() for it in adapter.values()),
        "magnitudes": any(it.magnitude is not None for it in adapter.values()),
    }


def described(path: Path) -> dict[str, Any]:
    """Facts about an adapter, without its base.

    Args:
        path: A folder in PEFT's format, or the checkpoint of a run.

    Raises:
        CheckpointError: It is neither, or is damaged.
        MappingError: It is no adapter of low rank.
    """
    if not is_adapter_folder(path):
        if not is_megatron_checkpoint(path):
            raise CheckpointError(
                f"{path} holds no adapter: it has no {CONFIG}, and is no checkpoint of a run. Give "
                "a folder in PEFT's format, or a run with adapters."
            )
        return {"format": "run", **facts_of(read_run_adapter(path))}
    folder = read_folder(path)
    folder.check_kind()
    named = {key: folder.config.get(key) for key in ("r", "lora_alpha", "use_dora")}
    targets = ("target_modules", "target_parameters", "base_model_name_or_path")
    return {
        "format": "peft",
        **named,
        **{key: folder.config.get(key) for key in targets},
        "tensors": len(folder.tensors),
        "numbers": sum(it.numel() for it in folder.tensors.values()),
        "base": folder.base,
    }
