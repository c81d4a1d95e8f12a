"""`MoEModel`: building from keyword arguments, saving, loading, expert parallelism.

The network itself and its parameter names are in `language_model`; it generates in `text_model`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from moe_megatron.config import Architecture, ExpertConfig, RouterConfig
from moe_megatron.config.arguments import explained
from moe_megatron.errors import ConfigError
from moe_megatron.experts import expert_given_again, own_expert
from moe_megatron.files import namable, user_path
from moe_megatron.model import expert_parallel, foreign, storage
from moe_megatron.model.foreign import Format
from moe_megatron.model.language_model import LanguageModel
from moe_megatron.model.layers import FeedForward
from moe_megatron.model.options import build_configs
from moe_megatron.model.placement import check_placement, check_precision
from moe_megatron.model.text_model import TextModel
from moe_megatron.model.whole_experts import check_whole
from moe_megatron.routing import given_again, own_router

logger = logging.getLogger(__name__)

DEFAULT_VOCAB_SIZE = 8192
"""Vocabulary of the tokenizer that `moe_megatron.data` trains on its demo corpus."""


@explained
class MoEModel(TextModel):
    """Decoder-only transformer with Mixture-of-Experts layers.

        model = MoEModel(hidden_size=128, num_experts=8, experts_per_token=2, num_layers=2)
        output = model(input_ids, labels=input_ids)
        output.loss.backward()

    Attributes:
        architecture: Architecture; its parts are `model_config`, `moe_config` and `vocab_size`.
        tokenizer: What turns text into the model's ids and back.
    """

    def __init__(
        self,
        hidden_size: int = 256,
        num_experts: int | None = 8,
        experts_per_token: int | None = None,
        num_layers: int = 4,
        router_type: str | None = None,
        *,
        vocab_size: int = DEFAULT_VOCAB_SIZE,
        **options: Any,
    ) -> None:
        """Build the model with random weights; call `torch.manual_seed` first to fix them.

        Args:
            hidden_size: Width of the residual stream.
            num_experts: Number of experts in each MoE layer; None for a dense model.
            experts_per_token: Number of experts for each token; None means 2, or 1 for "switch".
            num_layers: Number of transformer layers.
            router_type: The name of a router, such as "top_k" (softmax) or "sparse_mixer"; a
                function in a file of your own, "path/to/my_router.py:my_router"; or
                "switch" (top-1, arXiv:2101.03961) or "sigmoid" (independent scores,
                arXiv:2412.19437), which are short for options of top_k. None: what the option
                `router` names, or "top_k".
            vocab_size: Number of entries of the vocabulary.
            **options: Any other field of `ModelConfig` and `MoEConfig`, for example
                `num_attention_heads`, `expert_hidden_size` or `capacity_factor`; and
                `load_balancer`, a `LoadBalancer` or the name of a balancing method, which decides
                several of them.

        Raises:
            ConfigError: A name or value is wrong, or the combination is not supported.
        """
        options |= {
            "hidden_size": hidden_size, "num_experts": num_experts, "num_layers": num_layers,
        }  # fmt: skip
        model, moe = build_configs(
            router_type=router_type, experts_per_token=experts_per_token, options=options
        )
        super().__init__(Architecture(model=model, moe=moe, vocab_size=vocab_size))

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> Self:
        """Build the model of an architecture (`RunConfig.architecture`) with random weights.

        Raises:
            ConfigError: `MoEModel` does not support the combination; Megatron may.
        """
        self = cls.__new__(cls)
        LanguageModel.__init__(self, architecture)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model, or change its precision, as `torch.nn.Module.to`.

        Raises:
            ConfigError: A device or precision is none.
            BackendUnavailableError: The device is not there.
        """
        check_placement(*args, *kwargs.values())
        return super().to(*args, **kwargs)

    def cuda(self, device: int | torch.device | None = None) -> Self:
        """Move the model to a GPU.

        Raises:
            BackendUnavailableError: There is none.
        """
        return self.to(f"cuda:{device}" if isinstance(device, int) else device or "cuda")

    def get_expert_weights(self) -> dict[int, Tensor]:
        """All expert matrices, as one detached copy for each MoE layer.

        Returns:
            By global layer number, from 1: [experts, n * inner, hidden]. An expert's rows are those
            of its gate, up and transposed down matrix, in this order (n = 3; without swiglu there
            is no gate and n = 2): the vectors that each inner feature reads from and writes to the
            residual stream. With an expert parallel group, only the experts of this process.

        Raises:
            ConfigError: The experts are modules of another kind, which may have other matrices.
        """
        if not self.moe_config.expert.is_model_mlp:
            raise ConfigError(
                f"experts of the kind '{self.moe_config.expert.name}' (moe.expert) need not have "
                "gate, up and down matrices; read model.layers[i].moe.experts['0'].state_dict()."
            )
        return {
            layer.layer: torch.stack(
                [e.hidden_side() for e in layer.experts.values() if isinstance(e, FeedForward)]
            )
            for layer in self._moe_layers()
        }

    def set_expert_parallel_group(self, group: dist.ProcessGroup | None) -> None:
        """Distribute the experts over processes; None gives every process all experts again.

        All processes of the group must call it, with the same weights. Process p of n keeps experts
        p * E/n to (p + 1) * E/n - 1 of each layer, under their old names, and drops the others.
        From then on each process has its own batch, and all must call forward and backward equally
        often, as tokens travel by all-to-all. An expert's gradient is then the sum over the losses
        of all processes. All other gradients are this process's own: the caller must sum them (and
        divide all gradients by n for a mean loss). Create the optimizer afterwards.

        Raises:
            TopologyError: The number of processes does not divide the number of experts, or the
                processes hold different weights.
            ConfigError: It is no group of processes.
        """
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise ConfigError(
                f"a group of processes is needed, not {group!r:.60} ({type(group).__name__}); make "
                "one with torch.distributed.new_group(ranks), or give None."
            )
        expert_parallel.collect_experts(self)
        if group is not None:
            expert_parallel.share_experts(self, group)

    def num_parameters(self, active: bool = False) -> int:
        """Number of parameters of the whole model, including experts on other processes.

        Args:
            active: Count only top_k routed experts per MoE layer, those that one token uses.
        """
        total = sum(parameter.numel() for parameter in self.parameters())
        for layer in self._moe_layers():
            sizes = [sum(p.numel() for p in e.parameters()) for e in layer.experts.values()]
            used = self.moe_config.top_k if active else layer.experts.num_experts
            total += sizes[0] * used - sum(sizes)
        return total

    def save_pretrained(self, path: str | Path, format: Format = "moe_megatron") -> None:
        """Write weights, configuration and, if the model has one, its tokenizer to a folder.

        Args:
            path: The folder.
            format: "moe_megatron" for safetensors and JSON with the names of this class;
                "hugging_face" for a folder in the format of a matching model family, for
                transformers and vLLM; "megatron" for a checkpoint for `--load`. The last two need
                a new folder.

        Raises:
            CheckpointError: The experts are distributed over processes, or the folder cannot be
                written or holds another kind of model.
            DataError: The tokenizer cannot be written.
            MappingError: No Hugging Face family can represent this model.
        """
        check_whole(self.expert_parallel_group, ", then save on one of them")
        folder, tensors = namable(user_path(path)), self.state_dict()
        if format == "moe_megatron":
            storage.save(folder, self.architecture, tensors)
            if self._tokenizer is not None:
                self._tokenizer.save(folder)
        elif format in {"hugging_face", "megatron"}:
            foreign.bridge().save(
                folder,
                self.architecture,
                tensors,
                as_megatron=format == "megatron",
                tokenizer=self._tokenizer,
            )
        else:
            raise ConfigError(
                f"a model cannot be saved as {format!r}; use 'moe_megatron', 'hugging_face' or "
                "'megatron'."
            )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        router: str | Mapping[str, Any] | None = None,
        expert: str | Mapping[str, Any] | None = None,
    ) -> Self:
        """Load a model, in evaluation mode.

        Args:
            path: A folder that `save_pretrained` wrote, a Hugging Face model folder or Megatron
                checkpoint of any family that this class can compute, or a Hub id.
            device: Device for the weights.
            dtype: Precision to convert the weights to; None keeps the saved one.
            router: The file and function of a router of your own, "path/to/my_router.py:my_router",
                if the model has one: a folder holds its name and hash alone, and loads no code. A
                changed file is given as {"name": "...", "replaces": "<the saved hash>"}.
            expert: The same of experts: "path/to/my_expert.py:MyExpert".

        Raises:
            ConfigError: The model has a router or experts of somebody's own that are not given, or
                others.
            CheckpointError: Files are missing or damaged, or this class cannot compute the model;
                the message says what is missing.
            MappingError: The model family is unknown.
        """
        folder = namable(user_path(path))
        check_placement(device)
        check_precision(dtype)
        given = _OwnCode(
            router=None if router is None else own_router(RouterConfig.conformed(router, "router")),
            expert=None if expert is None else own_expert(ExpertConfig.conformed(expert, "expert")),
        )
        if foreign.is_foreign(folder):
            return cls._from_foreign(path, device=device, dtype=dtype, given=given)
        architecture, tensors = storage.load(folder, device)
        architecture = given.put_into(architecture)
        with torch.device("meta"):
            model = cls.from_architecture(architecture)
        storage.assign(model, tensors, folder)
        model._find_tokenizer(folder)
        return model.to(dtype=dtype).eval()

    @classmethod
    def _from_foreign(
        cls,
        path: str | Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None,
        family: str | None = None,
        given: "_OwnCode | None" = None,
    ) -> Self:
        check_placement(device)
        check_precision(dtype)
        loaded = foreign.bridge().load(path, expected=family)
        with torch.device("meta"):
            model = cls.from_architecture((given or _OwnCode()).put_into(loaded.architecture))
        for what in loaded.left_out:
            logger.warning("%s: %s are left out", path, what)
        storage.assign(model, loaded.tensors, Path(path))
        if loaded.tokenizer_folder is not None:
            model._find_tokenizer(loaded.tokenizer_folder)
        return model.to(device=device, dtype=dtype).eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class _OwnCode:
    """Code of the user's own that was given for a saved model."""

    router: RouterConfig | None = None
    expert: ExpertConfig | None = None

    def put_into(self, architecture: Architecture) -> Architecture:
        """The architecture of the saved model, with what was given for it."""
        moe = architecture.moe
        if self.router is not None:
            moe = replace(moe, router=given_again(self.router, moe.router))
        if self.expert is not None:
            moe = replace(moe, expert=expert_given_again(self.expert, moe.expert))
        return replace(architecture, moe=moe)
