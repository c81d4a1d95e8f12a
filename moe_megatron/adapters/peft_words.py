"""The words of PEFT's format: names of tensors, targets, and what `adapter_config.json` says.

It is PEFT 0.21, for the modules of transformers 5. There a matrix is a linear layer, which is a
target module; or a parameter, such as that of all experts, [experts, outputs, inputs]. A target
parameter wraps the module that has it, one wrapper around the other, and the last one is outermost:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight      [r, inputs]
    base_model.model.model.layers.0.mlp.experts.lora_A.weight           down_proj, [experts * r, in]
    base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight  gate_up_proj, the same

It knows neither tensors nor models.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

PREFIX = "base_model.model."
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
WRAPPED = ".base_layer"
WEIGHT = ".weight"

_LAYER = re.compile(r"(?P<before>.*\blayers\.)\d+\.(?P<name>.+)")
_RENAMED = frozenset(("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))
"""Linear layers whose names PEFT takes for those of experts in the models of transformers 4, in
every MoE model: target modules of such names become the experts' parameters."""


def is_module(tensor: str, *, is_moe: bool) -> bool:
    """Whether PEFT gets a matrix as a target module, not as a target parameter.

    Args:
        tensor: Name of the matrix in the modules of transformers.
        is_moe: Whether the model has experts.
    """
    module = tensor.removesuffix(WEIGHT)
    leaf = module.rpartition(".")[2]
    return tensor.endswith(WEIGHT) and not (is_moe and leaf in _RENAMED)


def owner_of(tensor: str) -> str:
    """The module that has a tensor."""
    return tensor.rpartition(".")[0]


def key_of(owner: str, wrapped: int, part: str) -> str:
    """The name of a tensor in PEFT's file.

    Args:
        owner: The module that has the adapted matrix.
        wrapped: How many other wrappers are around its own.
        part: `A`, `B` or `MAGNITUDE`.
    """
    return f"{PREFIX}{owner}{WRAPPED * wrapped}.{part}"


def short_names(names: Iterable[str], model: Iterable[str]) -> dict[str, str]:
    """Names without the layer's, where all layers that have such a tensor are named; else whole.

    Args:
        names: Names of tensors or modules.
        model: All such names of the model.
    """
    wanted, there = _by_ending(names), _by_ending(model)
    return {
        name: ending if ending is not None and own == there.get(ending) else name
        for ending, own in wanted.items()
        for name in own
    }


def _by_ending(names: Iterable[str]) -> dict[str | None, set[str]]:
    found: dict[str | None, set[str]] = defaultdict(set)
    for name in names:
        match = _LAYER.fullmatch(name)
        found[match["name"] if match else None].add(name)
    return found


def patterns(
    values: Mapping[str, float], usual: float, short: Mapping[str, str]
) -> dict[str, float]:
    """The values that differ from the usual one, by names that are short where they can be.

    Args:
        values: A value for each whole name.
        usual: The value that needs no pattern.
        short: From `short_names`.
    """
    of_short: dict[str, set[float]] = defaultdict(set)
    for name, value in values.items():
        of_short[short[name]].add(value)
    return {
        short[name] if len(of_short[short[name]]) == 1 else name: value
        for name, value in values.items()
        if value != usual or len(of_short[short[name]]) > 1
    }


_PLAIN = re.compile(r"[\w.]+")
_SAME = ((r"\.", "."), (".*.", ""), ("(.*.)?", ""))
"""What patterns in files hold beside names, which changes nothing as names are matched by ends."""


def matching(pattern: Sequence[str] | Mapping[str, float], name: str) -> str | None:
    """The first of PEFT's patterns that fits a name; None if none does.

    Raises:
        ValueError: A pattern is a regular expression beyond what names need.
    """
    for text in pattern:
        plain = text.removeprefix("^").removesuffix("$")
        for odd, same in _SAME:
            plain = plain.replace(odd, same)
        if not _PLAIN.fullmatch(plain):
            raise ValueError(text)
        if name == plain or name.endswith(f".{plain}"):
            return text
    return None
