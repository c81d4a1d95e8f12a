"""The weights of a `MoEModel`, or of adapters on it, on their way to Megatron and back.

They are parts of a run. Which rows go where is known to `mcore/state/weights.py`.
"""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor

from moe_megatron.config import RunConfig
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.storage import WeightMap


class WeightExchange(Callback):
    """Copies the model's weights to Megatron and collects the trained ones.

    Args:
        model: Gives its weights; it is not changed.
    """

    def __init__(self, model: MoEModel) -> None:
        self._model = model
        self.trained: WeightMap = {}

    def load(self, chunks: list[Any]) -> list[Any]:
        """Start from the weights of rank 0."""
        from moe_megatron.mcore.state.weights import load_weights

        device = world.device()
        weights = {name: value.to(device) for name, value in self._model.state_dict().items()}
        for value in weights.values():
            dist.broadcast(value, src=0)
        load_weights(chunks, weights, self._model.architecture)
        return chunks

    def on_train_end(self, model: list[Any]) -> None:
        """Collect the trained weights on every rank."""
        from moe_megatron.mcore.state.weights import collect_weights

        self.trained = collect_weights(model, self._model.architecture)


class AdapterExchange(WeightExchange):
    """Copies the model's weights and an adapter to Megatron, and collects the adapter.

    Args:
        model: Gives its weights; it is not changed.
        adapters: Tensors of the adapter, by name; empty: it begins anew.
    """

    def __init__(self, model: MoEModel, adapters: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        self._adapters = adapters

    def load(self, chunks: list[Any]) -> list[Any]:
        """Start from the weights of rank 0, and from the adapter if there is one."""
        from moe_megatron.mcore.tuning.adapters.whole_adapters import load_adapters

        super().load(chunks)
        if self._adapters:
            load_adapters(chunks, self._adapters)
        return chunks

    def on_train_end(self, model: list[Any]) -> None:
        """Collect the adapter on every rank."""
        from moe_megatron.mcore.tuning.adapters.whole_adapters import collect_adapters

        self.trained = dict(collect_adapters(model))


def exchange_of(
    config: RunConfig, model: MoEModel, adapters: Mapping[str, Tensor]
) -> WeightExchange:
    """What a run trains: weights, or an adapter where it has one."""
    return AdapterExchange(model, adapters) if config.adapter.on else WeightExchange(model)
