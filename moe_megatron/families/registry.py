"""The registered families; a family registers itself when its file is imported."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import SequenceMatcher
from types import MappingProxyType
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import MappingError
from moe_megatron.families.choice import fitting_family
from moe_megatron.families.family import Family
from moe_megatron.families.hf_config import shown

_SHORT, _LONG, _ALIKE = 4, 60, 0.85
"""When a name is taken for a typing mistake: jamba is no llama, and olmo no olmoe."""

_families: dict[str, Family] = {}
_preferences: dict[str, float] = {}

FAMILIES: Mapping[str, Family] = MappingProxyType(_families)
"""Families by the `model_type` of their configurations."""


def register_family(family: Family, *, preference: float | None = None) -> None:
    """Register a family under its `model_type`s.

    Args:
        family: The family.
        preference: Rank among the families that a natively trained model may be exported as,
            smallest first. None: never export as this family, for example because transformers
            computes something that Megatron does not, or because another family is equivalent.

    Raises:
        MappingError: One of its `model_type`s is already registered.
    """
    for model_type in (family.name, *family.model_types):
        if model_type in _families:
            other = _families[model_type].name
            raise MappingError(
                f"there is already a table for '{model_type}' models, that of the family "
                f"'{other}'; choose another name."
            )
        _families[model_type] = family
    if preference is not None:
        _preferences[family.name] = preference


@contextmanager
def registered_family(family: Family, *, preference: float | None = None) -> Iterator[None]:
    """Register a family only within the `with` block; arguments as for `register_family`."""
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
        hf_config: Content of `config.json`.

    Raises:
        MappingError: It names no family, or one without a table.
    """
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str):
        raise MappingError(
            "config.json has no 'model_type'; use the config.json that belongs to the weights."
        )
    if model_type == _OWN:
        raise MappingError(
            "this is a model that MoEModel.save_pretrained has written in its own format; load it "
            "with MoEModel.from_pretrained, and convert it by saving it with "
            "format='hugging_face' or format='megatron'."
        )
    if model_type not in FAMILIES:
        raise MappingError(
            f"there is no mapping table for {shown(model_type)} models.{_guess(model_type)} "
            f"Known are {join_words(sorted(FAMILIES), 'and')}; docs/adding_a_family.md shows how "
            "to add one."
        )
    return FAMILIES[model_type]


_OWN = "moe_megatron"
"""`model_type` of a `MoEModel` in a folder of its own."""


def _guess(model_type: str) -> str:
    """A question about a `model_type` that was mistyped; "" for one that is merely similar."""

    def is_typo(known: str) -> bool:
        same_version = re.findall(r"\d+", known) == re.findall(r"\d+", model_type)
        alike = SequenceMatcher(None, known, model_type).ratio()
        return same_version and len(model_type) > _SHORT and alike > _ALIKE

    close = [known for known in FAMILIES if is_typo(known)] if len(model_type) < _LONG else []
    return nearest(model_type, close)


def family_of_run(run_config: RunConfig) -> Family:
    """The family that a natively trained model can be exported as.

    Args:
        run_config: The run, with every option of its router (`routing.resolve`).

    Raises:
        MappingError: None can; the message names the nearest and what it cannot express.
    """
    preferred = sorted(_preferences, key=lambda name: _preferences[name])
    return fitting_family(run_config, [_families[name] for name in preferred])
