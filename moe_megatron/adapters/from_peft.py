"""Reads an adapter in PEFT's format, as from any program: every word and shape is checked.

Tensors may be those of the modules of transformers 5, which have all experts in one parameter, or
of single experts as in transformers 4. It reads no files.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moe_megatron.adapters import peft_words as words
from moe_megatron.adapters.low_rank import LowRank
from moe_megatron.adapters.low_rank_rows import unpadded
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.adapters.split import AdaptedTensor, gathered
from moe_megatron.config.checks import clipped, first_few, nearest
from moe_megatron.errors import CheckpointError, MappingError

_KEY = re.compile(
    r"(base_model\.model\.)?(?P<owner>[\w.]+?)(?P<wrapped>(\.base_layer)*)\."
    r"(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.default)?(\.weight)?"
)
_MOST_KEY = 500
_CHANGES = (
    *("modules_to_save", "fan_in_fan_out", "lora_bias", "layer_replication", "use_qalora"),
    *("trainable_token_indices", "alora_invocation_tokens", "use_bdlora", "velora_config"),
    *("kasa_config", "monteclora_config", "arrow_config"),
)
"""Fields that, if set, make something else of an adapter than W + s B A."""
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Of `init_lora_weights`, those that leave the base as it is."""


@dataclass(frozen=True, slots=True, order=True)
class _Owner:
    """A module with adapters: its name, and how many wrappers are around this one."""

    name: str
    wrapped: int


def from_peft(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], layouts: Sequence[Pieces]
) -> dict[str, LowRank]:
    """Read an adapter.

    Args:
        config: What `adapter_config.json` says.
        tensors: The tensors, by name.
        layouts: The model in the layouts of transformers 5 and 4, or one of them.

    Raises:
        MappingError: It is not low-rank adapters, or none that can be kept in this form.
        CheckpointError: It belongs to another model, or is damaged.
    """
    check_kind(config)
    owners = _by_owner(tensors)
    found: dict[str, LowRank] = {}
    for pieces in layouts:
        known = {owner: name for owner in owners if (name := _named(owner, owners, config, pieces))}
        adapted = [
            _adapted(name, owners.pop(owner), config, pieces) for owner, name in known.items()
        ]
        found |= gathered((it for it in adapted if it.matrices), pieces)
    if owners:
        raise _unknown(sorted(owners), layouts)
    return found


def check_kind(config: Mapping[str, Any]) -> None:
    """Refuse what is no adapter of low rank, by what its `adapter_config.json` says.

    Raises:
        MappingError: It is more than low-rank adapters, or something else.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise MappingError(
            f"the adapter is of the kind {clipped(str(kind))}, but only low-rank adapters (LORA) "
            "can be read; merge it with peft (merge_and_unload) and use the merged model."
        )
    odd = [name for name in _CHANGES if config.get(name)]
    odd += ["bias"] if config.get("bias", "none") != "none" else []
    if not any(config.get("init_lora_weights", True) is it for it in _PLAIN_BEGINNINGS[:3]):
        odd += ["init_lora_weights"] if config["init_lora_weights"] not in _PLAIN_BEGINNINGS else []
    if odd:
        raise MappingError(
            f"the adapter sets {first_few(odd)}, which more than W + s B A is needed for; merge it "
            "with peft (merge_and_unload) and use the merged model."
        )


def _by_owner(tensors: Mapping[str, Tensor]) -> dict[_Owner, dict[str, Tensor]]:
    found: dict[_Owner, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key) if len(key) < _MOST_KEY else None
        if match is None:
            raise MappingError(
                f"the adapter holds {clipped(key)}, which is no tensor of a low-rank adapter; "
                "merge it with peft (merge_and_unload) and use the merged model."
            )
        owner = _Owner(match["owner"], match["wrapped"].count(words.WRAPPED))
        found[owner][match["part"]] = tensor
    return dict(found)


def _named(
    owner: _Owner,
    owners: Iterable[_Owner],
    config: Mapping[str, Any],
    pieces: Pieces,
) -> str | None:
    """The tensor of the layout that an owner's adapter is of; None if it has none."""
    if not owner.wrapped and f"{owner.name}{words.WEIGHT}" in pieces.of_tensor:
        return f"{owner.name}{words.WEIGHT}"
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(it, str) for it in targets):
        raise _damaged("target_parameters", targets)
    own = [
        name
        for name in pieces.of_tensor
        if words.owner_of(name) == owner.name
        and any(name == it or name.endswith(f".{it}") for it in targets)
    ]
    depth = sum(it.name == owner.name for it in owners)
    return own[-1 - owner.wrapped] if len(own) == depth and owner.wrapped < depth else None


def _adapted(
    name: str, own: Mapping[str, Tensor], config: Mapping[str, Any], pieces: Pieces
) -> AdaptedTensor:
    first = pieces.of_tensor[name][0]
    experts = first.experts or 1
    a, b, magnitude = (own.get(part) for part in ("lora_A", "lora_B", words.MAGNITUDE))
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or not a.is_floating_point():
        raise CheckpointError(
            f"the adapter of {name} has no whole pair of matrices lora_A and lora_B; its file is "
            "damaged, or of a program that keeps them otherwise: save it again."
        )
    outputs, inputs = first.shape
    rank, rest = divmod(a.shape[0], experts)
    if (b.shape[0], a.shape[1]) != (outputs, inputs) or rest or b.shape[1] != a.shape[0]:
        raise _misfit(name, a, b, experts, first.shape)
    scale = _scale(name, rank, config)
    if first.experts is None:
        return AdaptedTensor(name, None, {0: LowRank(a, b, scale, magnitude)})
    all_a, all_b = a.view(experts, rank, inputs), b.view(outputs, rank, experts)
    matrices = {
        number: unpadded(LowRank(all_a[number], all_b[:, :, number], scale))
        for number in range(experts)
    }
    return AdaptedTensor(name, experts, {n: it for n, it in matrices.items() if it.rank})


def _scale(name: str, rank: int, config: Mapping[str, Any]) -> float:
    module = name.removesuffix(words.WEIGHT)
    alphas = config.get("alpha_pattern") or {}
    try:
        found = words.matching(alphas, module) or words.matching(alphas, name)
    except ValueError as error:
        raise MappingError(
            f"alpha_pattern of the adapter holds the regular expression {clipped(str(error))}, "
            "where only names are understood; merge it with peft and use the merged model."
        ) from None
    alpha = config.get("lora_alpha") if found is None else alphas[found]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise _damaged("lora_alpha", alpha)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _damaged(field: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"adapter_config.json says {field}: {clipped(str(value))}, which cannot be; save the "
        "adapter again."
    )


def _misfit(
    name: str, a: Tensor, b: Tensor, experts: int, shape: tuple[int, int]
) -> CheckpointError:
    outputs, inputs = shape
    turned = (b.shape[0], a.shape[1]) == (inputs, outputs) and outputs != inputs and experts > 1
    if turned:
        return CheckpointError(
            f"the adapter of {name} has inputs and outputs exchanged: lora_A is {list(a.shape)} "
            f"and lora_B {list(b.shape)}, as older versions of peft write those of experts. Load "
            "it with the version that wrote it, merge it there, and use the merged model."
        )
    needed = f"[{'rank' if experts == 1 else f'{experts} * rank'}, {inputs}]"
    other = f"[{outputs}, {'rank' if experts == 1 else f'rank * {experts}'}]"
    return CheckpointError(
        f"the adapter of {name} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, but this "
        f"model needs {needed} and {other}; it belongs to a model of other sizes."
    )


def _unknown(owners: Sequence[_Owner], layouts: Sequence[Pieces]) -> CheckpointError:
    known = [name for pieces in layouts for name in _modules(pieces)]
    first = owners[0].name
    return CheckpointError(
        f"the adapter is for {first_few(list(dict.fromkeys(it.name for it in owners)), 3)}, which "
        f"matches no matrix of this model.{nearest(first, known)} It belongs to another model, or "
        "names its matrices otherwise."
    )


def _modules(pieces: Pieces) -> Iterator[str]:
    for name in pieces.of_tensor:
        yield (
            name.removesuffix(words.WEIGHT) if name.endswith(words.WEIGHT) else words.owner_of(name)
        )
