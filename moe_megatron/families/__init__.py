"""Mapping tables: where each tensor of a Hugging Face model is stored in a Megatron checkpoint.

Tables are data and need neither torch nor Megatron nor transformers. A family is one file of this
package, a table registered under its `model_type`; adding the file is all it takes
(`docs/adding_a_family.md`).
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
