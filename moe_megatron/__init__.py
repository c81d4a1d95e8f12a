"""Train, watch, tune and ship Mixture-of-Experts models on Megatron-Core.

The public names are imported when they are first used: importing this package loads neither torch
nor Megatron.
"""

import importlib
from typing import TYPE_CHECKING, Any

from moe_megatron.version import package_version

if TYPE_CHECKING:
    __version__: str
    from moe_megatron.finetuning.fine_tuner import FineTuner
    from moe_megatron.model.outputs import MoEOutput
    from moe_megatron.models import MoEModel
    from moe_megatron.training.comparison import compare
    from moe_megatron.training.results import EvalResult, TrainingResult
    from moe_megatron.training.trainer import MoETrainer

_HOMES = {
    "EvalResult": "moe_megatron.training.results",
    "FineTuner": "moe_megatron.finetuning.fine_tuner",
    "MoEModel": "moe_megatron.models",
    "MoEOutput": "moe_megatron.model.outputs",
    "MoETrainer": "moe_megatron.training.trainer",
    "TrainingResult": "moe_megatron.training.results",
    "compare": "moe_megatron.training.comparison",
}

__all__ = [
    "EvalResult",
    "FineTuner",
    "MoEModel",
    "MoEOutput",
    "MoETrainer",
    "TrainingResult",
    "compare",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return package_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
