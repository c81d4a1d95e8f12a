"""Which family a natively trained model can be exported as.

A family fits if its configuration can express every field of the model's architecture, and if
writing that configuration and reading it back gives the same model, computed in the same way. The
tables decide this, so a new family needs no rule here.
"""

from collections.abc import Collection, Iterable
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.architecture import Difference
from moe_megatron.config.checks import first_few
from moe_megatron.errors import ConfigError, MappingError
from moe_megatron.families.family import Family
from moe_megatron.families.hf_config import HfConfig

FLAGS_OF_UNKNOWN_FUNCTION = tuple(
    """
    apply-layernorm-1p apply-residual-connection-post-layernorm attention-output-gate
    experimental-attention-variant heterogeneous-layers-config-encoded-json
    heterogeneous-layers-config-path hybrid-layer-pattern hybrid-override-pattern is-hybrid-model
    moe-apply-probs-on-input moe-latent-size moe-mlp-glu-interleave-size moe-router-force-biased
    moe-router-force-load-balancing moe-shared-expert-glu-interleave-size mrope-section
    mtp-use-repeated-layer no-rope-freq openai-gelu qk-l2-norm softmax-type spec use-mup
    """.split()
)
"""Megatron flags that change what a model computes and that no `ModelConfig` field covers."""


def fitting_family(run_config: RunConfig, families: Iterable[Family]) -> Family:
    """The first family that can express the model of a run.

    Args:
        run_config: A run that was not imported.
        families: Families in order of preference.

    Raises:
        MappingError: None can; the message names the nearest and what it cannot express.
    """
    misfits: list[tuple[int, str]] = []
    for family in families:
        weight, problem = _misfit(run_config, family)
        if not weight:
            return family
        misfits.append((weight, f"the nearest is {family.name}: {problem}"))
    nearest = min(misfits, key=lambda misfit: misfit[0])[1]
    raise MappingError(
        f"no Hugging Face family can express this model; {nearest.removesuffix('.')}. Train with "
        "settings that a family has, or keep the Megatron checkpoint."
    )


def check_expressed(
    run_config: RunConfig, family: Family, hf_config: HfConfig, names: Collection[str]
) -> None:
    """Refuse to export a model as a configuration that describes another one.

    Args:
        run_config: The run, whose model was imported and may have been changed since.
        family: Its family.
        hf_config: The `config.json` that would be written for it.
        names: Names of the checkpoint's tensors.

    Raises:
        MappingError: Reading the configuration gives another model; the message names the fields.
    """
    if problems := _differences(run_config, family, hf_config, names):
        raise MappingError(
            f"a {family.name} model cannot be what this run trained: {first_few(problems)}. The "
            "export would be another model; keep the Megatron checkpoint, or set these fields back."
        )


def _misfit(run_config: RunConfig, family: Family) -> tuple[int, str]:
    """How far a family is from a run's model (0: it fits), and what it cannot express."""
    architecture = run_config.architecture
    if family.is_moe != architecture.is_moe:
        return 100, f"it is {'a MoE' if family.is_moe else 'a dense'} family"
    try:
        found = [_sentence(difference) for difference in family.misfits(architecture)]
        # The round trip is costly, so only a family that seems to fit is put to it.
        found = found or _round_trip_problems(run_config, family)
    except (MappingError, ConfigError) as error:
        return 99, str(error)
    found += [
        f"--{flag} is set" for flag in run_config.megatron if flag in FLAGS_OF_UNKNOWN_FUNCTION
    ]
    return len(found), "; ".join(found)


def _round_trip_problems(run_config: RunConfig, family: Family) -> list[str]:
    """How the model changes if the family's configuration is written and read back."""
    hf_config = family.hf_config(run_config)
    return [*family.limits(hf_config), *_differences(run_config, family, hf_config, None)]


def _differences(
    run_config: RunConfig, family: Family, hf_config: HfConfig, names: Collection[str] | None
) -> list[str]:
    """How the model of a configuration differs from that of a run, as sentences."""
    ours, theirs = run_config.architecture, family.geometry(hf_config, names).architecture
    differences = ours.differences(theirs, ours.field_names("tensors", "function"))
    return list(map(_sentence, differences))


def _sentence(difference: Difference) -> str:
    return f"{difference.name} would be {_show(difference.theirs)}, not {_show(difference.ours)}"


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
