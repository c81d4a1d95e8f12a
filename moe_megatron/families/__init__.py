"""Mapping tables: where each tensor of a Hugging Face model lies in a Megatron checkpoint.

Data alone, without torch, Megatron or transformers. A family is one file of this package, which is
all it takes to add one: a table, registered under its `model_type`; `docs/adding_a_family.md` shows
how.
"""

import importlib
import pkgutil

from moe_megatron.families.family import Family
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.registry import (
    FAMILIES,
    family_of,
    family_of_run,
    register_family,
    registered_family,
)

for _module in pkgutil.iter_modules(__path__):  # a family is registered when its file is imported
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FAMILIES",
    "Family",
    "Geometry",
    "family_of",
    "family_of_run",
    "register_family",
    "registered_family",
]
