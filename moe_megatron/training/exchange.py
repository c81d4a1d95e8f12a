"""The weights of a `MoEModel` on their way to Megatron and back, as parts of a run.

Which rows go where is known to `mcore/state/weights.py`.
"""

from typing import Any

import torch.distributed as dist

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
