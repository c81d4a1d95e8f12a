"""An adapter in PEFT's format: the content of `adapter_config.json`, and tensors by name.

PEFT knows one rank and one scale for all experts of a layer: smaller ranks are padded with zeros
there, and other scales are moved into B. It writes no files.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_megatron.adapters import peft_words as words
from moe_megatron.adapters.low_rank import Adapter, LowRank
from moe_megatron.adapters.low_rank_rows import padded
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.adapters.split import AdaptedTensor, split
from moe_megatron.errors import MappingError


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """What the two files of PEFT's format hold."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Target:
    """One adapted tensor, of all experts together."""

    name: str
    low_rank: LowRank
    """Of experts: rank of one, A [experts * rank, inputs] and B [outputs, rank * experts]."""
    a: Tensor
    b: Tensor

    @property
    def alpha(self) -> float:
        """PEFT's scale is alpha / r."""
        alpha = self.low_rank.scale * self.low_rank.rank
        return round(alpha) if abs(alpha - round(alpha)) < 1e-9 * alpha else alpha


def to_peft(
    adapter: Adapter, pieces: Pieces, *, is_moe: bool, base: str | None = None
) -> PeftAdapter:
    """Write an adapter in PEFT's words.

    Args:
        adapter: The adapter.
        pieces: The model in the layout of transformers 5.
        is_moe: Whether the model has experts.
        base: Name or path of the model, which programs load unless they are given another one.

    Raises:
        CheckpointError: It belongs to another model.
        MappingError: PEFT cannot express it; the message says what to do.
    """
    targets = [_target(tensor) for tensor in split(adapter, pieces)]
    if not targets:
        raise MappingError("the adapter adapts no matrix, so there is nothing to write.")
    modules = [it for it in targets if words.is_module(it.name, is_moe=is_moe)]
    parameters = [it for it in targets if it not in modules]
    config = _config(modules, parameters, pieces)
    config["base_model_name_or_path"] = base
    config["use_dora"] = _has_magnitudes(targets, parameters)
    tensors: dict[str, Tensor] = {}
    for module in modules:
        tensors |= _tensors(module, 0)
    of_owner: dict[str, list[_Target]] = defaultdict(list)
    for target in parameters:
        of_owner[words.owner_of(target.name)].append(target)
    for own in of_owner.values():
        for wrapped, target in enumerate(reversed(own)):
            tensors |= _tensors(target, wrapped)
    return PeftAdapter(config, tensors)


def _target(tensor: AdaptedTensor) -> _Target:
    if tensor.experts is None:
        (one,) = tensor.matrices.values()
        return _Target(tensor.name, one, one.a, one.b)
    widest = max(tensor.matrices.values(), key=lambda it: it.rank)
    if any(it.magnitude is not None for it in tensor.matrices.values()):
        raise _no_magnitudes(tensor.name)
    shape = (tensor.experts, widest.rank)
    all_a = widest.a.new_zeros(*shape, widest.shape[1])
    all_b = widest.b.new_zeros(*shape, widest.shape[0])
    for number, low_rank in tensor.matrices.items():
        same = padded(low_rank, widest.rank, widest.scale)
        all_a[number], all_b[number] = same.a, same.b.T
    # A has all ranks of an expert in a row, B all experts of a rank.
    return _Target(
        tensor.name, widest, all_a.flatten(0, 1), all_b.permute(2, 1, 0).flatten(1).contiguous()
    )


def _config(
    modules: Sequence[_Target], parameters: Sequence[_Target], pieces: Pieces
) -> dict[str, Any]:
    names = {it.name: it.name.removesuffix(words.WEIGHT) for it in modules}
    names |= {it.name: it.name for it in parameters}
    short = words.short_names(
        names.values(),
        [*pieces.of_tensor, *(it.removesuffix(words.WEIGHT) for it in pieces.of_tensor)],
    )
    both = [*modules, *parameters]
    # PEFT warns of patterns for parameters, although it follows them: let those of modules differ.
    usual = Counter((it.low_rank.rank, it.alpha) for it in parameters or modules)
    rank, alpha = usual.most_common(1)[0][0]
    ranks: dict[str, float] = {names[it.name]: it.low_rank.rank for it in both}
    alphas = {names[it.name]: it.alpha for it in both}

    def listed(targets: Iterable[_Target]) -> list[str]:
        return sorted({short[names[it.name]] for it in targets})

    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": listed(modules),
        "target_parameters": listed(parameters) or None,
        "rank_pattern": words.patterns(ranks, rank, short),
        "alpha_pattern": words.patterns(alphas, alpha, short),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _has_magnitudes(targets: Sequence[_Target], parameters: Sequence[_Target]) -> bool:
    having = [it for it in targets if it.low_rank.magnitude is not None]
    refused = [it for it in parameters if it.low_rank.magnitude is not None]
    if refused:
        raise _no_magnitudes(refused[0].name)
    if having and len(having) < len(targets):
        other = next(it for it in targets if it.low_rank.magnitude is None)
        raise MappingError(
            f"{having[0].name} has magnitudes (DoRA) and {other.name} none, but PEFT gives them to "
            "all targets or to none; merge the adapter instead (moe-megatron adapter merge)."
        )
    return bool(having)


def _no_magnitudes(name: str) -> MappingError:
    return MappingError(
        f"{name} has magnitudes (DoRA), which PEFT does not know of parameters such as those of "
        "experts; merge the adapter instead (moe-megatron adapter merge), or train it with "
        "adapter.magnitude false."
    )


def _tensors(target: _Target, wrapped: int) -> dict[str, Tensor]:
    owner = words.owner_of(target.name)
    found = {
        words.key_of(owner, wrapped, words.A): target.a,
        words.key_of(owner, wrapped, words.B): target.b,
    }
    if target.low_rank.magnitude is not None:
        found[words.key_of(owner, wrapped, words.MAGNITUDE)] = target.low_rank.magnitude
    return {key: torch.clone(tensor).contiguous() for key, tensor in found.items()}
