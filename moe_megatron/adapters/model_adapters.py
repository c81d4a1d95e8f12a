"""Several adapters beside one `MoEModel`, of which each call uses one, or none.

    adapters = ModelAdapters(model)
    adapters.add("law", "law_adapter")
    adapters.add("code", other_adapter)
    with adapters.using("law"):
        model.generate_text("My rights are")

An adapted linear layer computes y = W x + b + s B (A x), and with magnitudes y = m / |W + s B A| *
(W x + s B (A x)) + b; the base itself stays as it is, and without an adapter computes what it did,
bit for bit. Which adapter is used is each thread's own choice.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_megatron.adapters.base_hash import hash_of_model
from moe_megatron.adapters.hf_layouts import layouts_of_model
from moe_megatron.adapters.layer_update import LayerUpdate
from moe_megatron.adapters.low_rank import Adapter, check_finite
from moe_megatron.adapters.peft_folder import is_adapter_folder, read_folder
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.adapters.run_adapter import read_run_adapter
from moe_megatron.adapters.split import split
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.config.checks import clipped, join_words, nearest
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.model import MoEModel
from moe_megatron.model.given import model_given
from moe_megatron.model.links import links_of
from moe_megatron.model.whole_experts import check_whole

_WEIGHT = ".weight"


class ModelAdapters:
    """The adapters of one model, by name.

    Args:
        model: The base, with all of its experts. Its weights must not change afterwards if an
            adapter has magnitudes.

    Raises:
        ConfigError: It is no `MoEModel`, or its experts are on several processes.
    """

    def __init__(self, model: MoEModel) -> None:
        self.model = model_given(model, "ModelAdapters")
        check_whole(model.expert_parallel_group, " before adapters are added", ConfigError)
        self._pieces = Pieces(links_of(model.architecture))
        self._updates: dict[str, dict[str, LayerUpdate]] = {}
        self._hooked: dict[str, Any] = {}
        self._hash: str | None = None
        self._used: ContextVar[str | None] = ContextVar("used", default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that there are, in the order in which they were added."""
        return tuple(self._updates)

    @torch.no_grad()
    def add(self, name: str, adapter: Adapter | str | Path) -> None:
        """Add an adapter; nothing changes if it does not fit.

        Args:
            name: By which it is used.
            adapter: The adapter, a folder in PEFT's format, or the checkpoint of a run.

        Raises:
            ConfigError: There is one of this name, or it adapts what is no linear layer.
            CheckpointError: It belongs to another model, or is damaged.
            MappingError: It is more than low-rank adapters.
        """
        if name in self._updates:
            raise ConfigError(
                f"there is an adapter '{clipped(name)}' already; choose another name, or remove "
                "that one first."
            )
        if isinstance(adapter, str | Path):
            adapter = self._read(user_path(adapter))
        elif not isinstance(adapter, Mapping):
            raise ConfigError(
                f"an adapter is needed, not {type(adapter).__name__}; give that of a MoELoRA "
                "(lora.adapter), a folder in PEFT's format, or the checkpoint of a run."
            )
        else:
            check_finite(adapter, f"'{clipped(name)}'")
        found: dict[str, LayerUpdate] = {}
        for tensor in split(adapter, self._pieces):
            layer = self._layer(tensor.name)
            update = LayerUpdate.of(layer, tensor.matrices[0])
            found[tensor.name.removesuffix(_WEIGHT)] = update
        for module in found.keys() - self._hooked.keys():
            hook = self._hook(module)
            self._hooked[module] = self.model.get_submodule(module).register_forward_hook(hook)
        self._updates[name] = found

    def remove(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ConfigError: There is none of this name.
        """
        del self._updates[self._known(name)]
        still = {module for updates in self._updates.values() for module in updates}
        for module in self._hooked.keys() - still:
            self._hooked.pop(module).remove()

    @contextmanager
    def using(self, name: str | None) -> Iterator[MoEModel]:
        """Use an adapter in all calls of the model inside the block, of this thread alone.

        Args:
            name: Of the adapter; None: the base alone.

        Raises:
            ConfigError: There is none of this name.
        """
        token = self._used.set(None if name is None else self._known(name))
        try:
            yield self.model
        finally:
            self._used.reset(token)

    def logits(self, input_ids: Tensor, names: Sequence[str | None]) -> Tensor:
        """Logits of a batch whose sequences have different adapters.

        Those of one adapter are computed together.

        Args:
            input_ids: int64 [batch, seq], without padding.
            names: The adapter of each sequence; None: the base alone.

        Returns:
            [batch, seq, vocab].

        Raises:
            ConfigError: An adapter is not known, or there is not one for each sequence.
        """
        if len(names) != len(input_ids):
            raise ConfigError(
                f"{len(names)} adapters are named for {len(input_ids)} sequences; name one for "
                "each, or None."
            )
        parts: list[tuple[Tensor, Tensor]] = []
        for name in dict.fromkeys(names):
            rows = torch.tensor([at for at, own in enumerate(names) if own == name])
            rows = rows.to(input_ids.device)
            with self.using(name):
                parts.append((rows, self.model(input_ids[rows]).logits))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([logits for _, logits in parts])[order]

    def _known(self, name: str) -> str:
        if name not in self._updates:
            known = join_words([*self.names], "and") or "none yet"
            raise ConfigError(
                f"there is no adapter '{clipped(str(name))}'.{nearest(str(name), self.names)} "
                f"Known are: {known}."
            )
        return name

    def _read(self, path: Path) -> Adapter:
        if not is_adapter_folder(path) and is_megatron_checkpoint(path):
            return read_run_adapter(path)
        folder = read_folder(path)
        if folder.base is not None:
            self._hash = self._hash or hash_of_model(self.model)
            folder.check_base(self._hash)
        return folder.fitted(layouts_of_model(self.model.architecture).both)

    def _layer(self, tensor: str) -> nn.Linear:
        module = tensor.removesuffix(_WEIGHT)
        layer = self.model.get_submodule(module) if tensor.endswith(_WEIGHT) else None
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"the adapter changes {tensor}, which is no linear layer of this model; merge it "
                "instead (moe-megatron adapter merge)."
            )
        return layer

    def _hook(self, module: str) -> Any:
        def adapted(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            name = self._used.get()
            update = None if name is None else self._updates[name].get(module)
            return None if update is None else update.apply(layer, inputs[0], output)

        return adapted
