"""Which family a natively trained model can be exported as.

A family fits when it can say every field of the model's architecture, and the configuration that it
would write, read again, is the same model, computed in the same way. So the tables decide, and a
new family needs no rule here.
"""

from collections.abc import Iterable
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.architecture import Difference
from moe_megatron.errors import ConfigError, MappingError
from moe_megatron.families.family import Family

FLAGS_OF_UNKNOWN_FUNCTION = ("apply-layernorm-1p", "moe-latent-size", "softmax-type")
"""Megatron flags that change what a model computes in ways that no field of ours says."""


def fitting_family(run_config: RunConfig, families: Iterable[Family]) -> Family:
    """The first family that holds the model of a run.

    Args:
        run_config: A run that was not imported.
        families: Families in order of preference.

    Raises:
        MappingError: None does; names the nearest and what it cannot say.
    """
    misfits: list[tuple[int, str]] = []
    for family in families:
        weight, problem = _misfit(run_config, family)
        if not weight:
            return family
        misfits.append((weight, f"the nearest is {family.name}: {problem}"))
    nearest = min(misfits, key=lambda misfit: misfit[0])[1]
    raise MappingError(
        f"no Hugging Face family holds this model; {nearest.removesuffix('.')}. Train with "
        "settings that a family has, or keep the Megatron checkpoint."
    )


def _misfit(run_config: RunConfig, family: Family) -> tuple[int, str]:
    """How far a family is from a run's model (0: it holds it), and what it cannot say."""
    architecture = run_config.architecture
    if family.is_moe != architecture.is_moe:
        return 100, f"it is {'a MoE' if family.is_moe else 'a dense'} family"
    try:
        found = [_sentence(difference) for difference in family.misfits(architecture)]
        # Only the one that seems to hold it is made to prove it.
        found = found or _problems(run_config, family)
    except (MappingError, ConfigError) as error:
        return 99, str(error)
    found += [
        f"--{flag} is set" for flag in run_config.megatron if flag in FLAGS_OF_UNKNOWN_FUNCTION
    ]
    return len(found), "; ".join(found)


def _problems(run_config: RunConfig, family: Family) -> list[str]:
    """What is another model after writing the family's configuration and reading it again."""
    hf_config = family.hf_config(run_config)
    ours, theirs = run_config.architecture, family.geometry(hf_config).architecture
    differences = ours.differences(theirs, ours.field_names("tensors", "function"))
    return [*family.limits(hf_config), *map(_sentence, differences)]


def _sentence(difference: Difference) -> str:
    return f"{difference.name} would be {_show(difference.theirs)}, not {_show(difference.ours)}"


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
