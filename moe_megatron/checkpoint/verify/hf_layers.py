"""A Hugging Face model with the weights of one layer in memory at a time.

transformers builds the model, converts the weights of each layer as it does for `from_pretrained`,
and computes; this module only decides when weights are read. It does not know Megatron, and uses
mapping tables only to find out which tensors belong to which layer.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.config.checks import clipped
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.families import family_of
from moe_megatron.families.links import Link
from moe_megatron.platform.lazy_weights import load_while_running, weights_left_out

_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError)
"""What transformers raises for a configuration that it does not know or does not like."""

Logits = Callable[[Tensor], Tensor]
"""Maps tokens, int64 [batch, sequence], to logits, float32 [batch, sequence, vocabulary]."""


@contextlib.contextmanager
def layered_hf_model(
    folder: HfFolder, links: Sequence[Link], *, dtype: torch.dtype = torch.float32
) -> Iterator[Logits]:
    """The model of a folder as a function, usable inside the context.

    In memory are the weights outside the layers, and those of one layer at a time.

    Args:
        folder: Weights and configuration.
        links: All links of the model; they say which tensors belong to which layer.
        dtype: Type of the computation.

    Raises:
        BackendUnavailableError: transformers cannot compute it on a CPU.
    """
    from safetensors import safe_open

    model = _build(folder, dtype)
    names = _names_by_layer(folder, links)
    with contextlib.ExitStack() as stack:
        files = {
            file: stack.enter_context(safe_open(folder.path / file, framework="pt"))
            for file in sorted({tensor.file for tensor in folder.tensors.values()})
        }

        def load(layer: int | None) -> None:
            slices = {n: files[folder.tensors[n].file].get_slice(n) for n in names[layer]}
            _load_weights(model, slices, dtype)

        load(None)
        model.tie_weights()
        layers = model.get_decoder().layers
        _check_outside(model, layers)
        for number, layer in enumerate(layers):
            load_while_running(layer, partial(load, number))
        yield lambda tokens: _logits(model, tokens)


def _build(folder: HfFolder, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    if "quantization_config" in folder.config:
        raise BackendUnavailableError(
            f"{folder.path} holds quantised weights, with which transformers cannot compute on a "
            "CPU; compare the logits of a dequantised export."
        )
    config = _config(folder)
    if config.is_encoder_decoder:
        raise BackendUnavailableError(
            f"{folder.path} holds an encoder and a decoder, but Megatron has only the decoder; "
            "there are no logits that both compute."
        )
    with weights_left_out():
        try:
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
            )
        except _REFUSALS as error:
            raise _not_built(folder, error) from error
    return model.eval()


def _config(folder: HfFolder) -> Any:
    """Transformers' configuration, of the class that computes the family."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    kind = family_of(folder.config).computed_by
    known = {key: v for key, v in folder.config.items() if key not in {"model_type", "auto_map"}}
    try:
        if not kind:
            return AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
        return AutoConfig.for_model(kind, **known)
    except (*_REFUSALS, StrictDataclassError) as error:
        raise _not_built(folder, error) from error


def _not_built(folder: HfFolder, error: Exception) -> BackendUnavailableError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return BackendUnavailableError(
        f"transformers cannot build the model in {folder.path} ({clipped(first)}); install a "
        "version that knows it"
    )


def _names_by_layer(folder: HfFolder, links: Sequence[Link]) -> dict[int | None, list[str]]:
    """The tensors of each layer; under None, those outside the layers."""
    layers: dict[str, int | None] = {
        block.name: link.layer
        for link in links
        if not link.key.startswith("mtp.")
        for block in link.blocks
    }
    names: dict[int | None, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        if name in folder.tensors:
            names[layer].append(name)
    return names


def _load_weights(model: Any, slices: dict[str, Any], dtype: torch.dtype) -> None:
    """Let transformers convert weights and load them into a model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    config = LoadStateDictConfig(
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=get_model_conversion_mapping(model),
    )
    disable_progress_bar()
    try:
        convert_and_load_state_dict_in_model(model, slices, config)
    finally:
        enable_progress_bar()


def _check_outside(model: Any, layers: nn.ModuleList) -> None:
    inside = {id(parameter) for parameter in layers.parameters()}
    left = [
        name
        for name, parameter in model.named_parameters()
        if parameter.device.type == "meta" and id(parameter) not in inside
    ]
    assert not left, f"the weights {', '.join(left[:5])} were not loaded"


def _logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(tokens, use_cache=False).logits
    return logits.float()
