"""Imports what Megatron imports at its start, and most runs never use, when it is used.

W&B's client and transformers are a fifth of the start of a rank. No file of Megatron is changed:
a module stands in `sys.modules` before it is executed, and is executed when somebody asks it for a
name, as by PEP 562.
"""

import importlib
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_TOKENIZERS = "megatron.core.tokenizers.text.libraries"


def import_later(name: str) -> None:
    """Import a package when it, or a module of it, is used; nothing if it is not installed."""
    if name not in sys.modules and (spec := find_spec(name)) is not None:
        _stand_in(spec, {})


def tokenizers_later() -> None:
    """Have Megatron import its `NullTokenizer` without all the others, and so transformers.

    Runs take token ids, and build that one.
    """
    if _TOKENIZERS in sys.modules:
        return
    from megatron import core

    file = Path(core.__path__[0], "tokenizers", "text", "libraries", "__init__.py")
    spec = spec_from_file_location(_TOKENIZERS, file)
    assert spec is not None
    _stand_in(spec, {"NullTokenizer": f"{_TOKENIZERS}.null_tokenizer"})


def _stand_in(spec: ModuleSpec, light: Mapping[str, str]) -> None:
    """Put the module into `sys.modules`, to be executed later.

    Args:
        spec: Of the module.
        light: Names that it would import from modules of its own, and these modules: they are given
            out, and the modules imported, without executing the whole. If it is empty, whoever
            imports a module of it executes it first.
    """
    module = module_from_spec(spec)
    names = module.__dict__
    path = names["__path__"] if light else names.pop("__path__", None)

    def find(name: str) -> Any:
        if name in light:
            return getattr(importlib.import_module(light[name]), name)
        if name.startswith("__") and name != "__path__":
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")
        del names["__getattr__"]
        if path is not None:
            names["__path__"] = path
        assert spec.loader is not None
        spec.loader.exec_module(module)
        return getattr(module, name)

    names["__getattr__"] = find
    sys.modules[spec.name] = module
