"""The families that there are; one is registered when its file is imported."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import MappingError
from moe_megatron.families.choice import fitting_family
from moe_megatron.families.family import Family

_families: dict[str, Family] = {}
_preferences: dict[str, float] = {}

FAMILIES: Mapping[str, Family] = MappingProxyType(_families)
"""Families by the `model_type` of their configurations."""


def register_family(family: Family, *, preference: float | None = None) -> None:
    """Make a family known by its `model_type`s.

    Args:
        family: Its table.
        preference: Its place, smallest first, among those that a natively trained model is exported
            as. None: none is, as where transformers computes what Megatron does not, or where
            another family says the same.

    Raises:
        MappingError: There is a family of that name.
    """
    for model_type in (family.name, *family.model_types):
        if model_type in _families:
            other = _families[model_type].name
            raise MappingError(f"there is a table for '{model_type}' models already, {other}'s.")
        _families[model_type] = family
    if preference is not None:
        _preferences[family.name] = preference


@contextmanager
def registered_family(family: Family, *, preference: float | None = None) -> Iterator[None]:
    """Have a family for as long as the context is open; arguments as for `register_family`."""
    register_family(family, preference=preference)
    try:
        yield
    finally:
        for model_type in (family.name, *family.model_types):
            del _families[model_type]
        _preferences.pop(family.name, None)


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """The family of a Hugging Face configuration.

    Args:
        hf_config: What `config.json` holds.

    Raises:
        MappingError: It names no family, or one that has no table.
    """
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str):
        raise MappingError(
            "config.json names no 'model_type'; take the config.json that belongs to the weights."
        )
    if model_type not in FAMILIES:
        raise MappingError(
            f"there is no mapping table for '{model_type}' models.{nearest(model_type, FAMILIES)} "
            f"Known are {join_words(sorted(FAMILIES), 'and')}; docs/adding_a_family.md shows how "
            "to add one."
        )
    return FAMILIES[model_type]


def family_of_run(run_config: RunConfig) -> Family:
    """The family that a natively trained model can be exported as.

    Args:
        run_config: The run, with every option of its router (`routing.resolve`).

    Raises:
        MappingError: None holds it; names the nearest and what it cannot say.
    """
    preferred = sorted(_preferences, key=lambda name: _preferences[name])
    return fitting_family(run_config, [_families[name] for name in preferred])
