"""`MoELoRA`: train low-rank adapters on a `MoEModel`, whose own weights stay as they are.

It is a `MoETrainer` whose run has adapters (`config/adapter.py`). What comes back is the adapter,
as data by the place of each matrix.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_megatron.adapters.asked_for import check_fitting
from moe_megatron.adapters.exported import save_adapter
from moe_megatron.adapters.from_run import adapter_of
from moe_megatron.adapters.low_rank import Adapter
from moe_megatron.adapters.merging import merge_into
from moe_megatron.adapters.model_adapters import ModelAdapters
from moe_megatron.adapters.movement import expert_movement
from moe_megatron.analytics.routers import RouterHooks
from moe_megatron.config import RunConfig
from moe_megatron.config.arguments import explained, shown, whole
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.finetuning.adapter_choice import (
    ADAPTER_RATE,
    check_rule,
    chosen_experts,
    on_experts,
    ranks_by_usage,
    selectors_of,
)
from moe_megatron.finetuning.fine_tuner import format_of
from moe_megatron.finetuning.task_profile import task_profile
from moe_megatron.mcore import world
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.storage import WeightMap
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import RunResult
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.router_digest import check_same_routers
from moe_megatron.training.results import EvalResult, TrainingResult
from moe_megatron.training.texts import Texts
from moe_megatron.training.trainer import MoETrainer

BY_USAGE = "by_usage"
"""`ranks` that follow what of the tokens each expert gets."""

_SEQUENCES = 128
_NAME = "trained"

logger = logging.getLogger(__name__)


@explained
class MoELoRA(MoETrainer):
    """Trains low-rank adapters on a `MoEModel` (LoRA, arXiv:2106.09685).

        lora = MoELoRA(OLMoE.from_pretrained("my_model"), r=8, lora_alpha=16)
        lora.train(["some text", "some more"], learning_rate=2e-4, num_epochs=2)
        lora.adapter  # by the place of each matrix

    Args:
        base_model: The model to adapt; its weights stay as they are, bit for bit.
        r: Rank of the adapters.
        lora_alpha: Their scale is lora_alpha / r.
        target_modules: What has adapters: expert_fc1, expert_fc2, shared_expert_fc1,
            shared_expert_fc2, attention_qkv, attention_proj, mlp_fc1, mlp_fc2, or selectors.
        expert_wise_adaptation: True gives each routed expert an adapter of its own, False all
            experts of a layer the same; "shared_a" shares A and gives each expert its own B.
        ranks: Ranks of their own, by selector, such as {"experts@2:0": 16}; or "by_usage", which
            gives an expert a rank in proportion to its tokens.
        experts: Adapters for some routed experts alone: "top:25%" for those with the most tokens
            (MoE-Sieve, arXiv:2603.24044), or "cumulative:0.2" for the fewest that get this share.
        profile: Routing of the task, for the two before; None: the first of the data that is
            trained on is read first.
        use_rslora: Scale by lora_alpha / sqrt(r) (arXiv:2312.03732).
        use_dora: Train the norm of each row, too (arXiv:2402.09353).
        use_qlora: Keep the routed experts of the run in 4 bits (arXiv:2305.14314), which rounds
            them there; the model itself stays as it is.
        lora_dropout: Probability of leaving an input of A out, in training.
        tokenizer: As in `MoETrainer`.
        run_dir: As in `MoETrainer`.
        overrides: As in `MoETrainer`.

    Raises:
        ConfigError: An argument is invalid, or names what the model does not have.
    """

    def __init__(  # noqa: PLR0913  # what people set, by the names that they know
        self,
        base_model: MoEModel,
        r: int = 8,
        lora_alpha: float = 16.0,
        target_modules: Sequence[str] = ("expert_fc1", "expert_fc2"),
        expert_wise_adaptation: bool | str = True,
        *,
        ranks: str | Mapping[str, int] | None = None,
        experts: str | None = None,
        profile: RoutingProfile | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
        use_qlora: bool = False,
        lora_dropout: float = 0.0,
        tokenizer: Any = None,
        run_dir: str | Path = "runs/moe_lora",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self._targets = [*map(str, target_modules)] if not isinstance(target_modules, str) else []
        self._by_usage, own_ranks = _ranks(ranks)
        self._experts, self._profile = experts, profile
        fields: dict[str, Any] = {
            "adapter.rank": whole("r", r),
            "adapter.alpha": lora_alpha,
            "adapter.targets": selectors_of(target_modules),
            "adapter.ranks": own_ranks,
            "adapter.experts": _sharing(expert_wise_adaptation),
            "adapter.scaling": "rank_stabilized" if use_rslora else "standard",
            "adapter.magnitude": use_dora,
            "adapter.dropout": lora_dropout,
            "adapter.frozen_experts": "nf4" if use_qlora else "as_is",
        }
        for name in overrides or {}:
            if str(name).startswith(("adapter", "finetune.train", "finetune.freeze")):
                raise ConfigError(
                    f"overrides cannot set {name}: MoELoRA(...) trains adapters alone, which its "
                    "arguments describe; leave it out of overrides."
                )
        super().__init__(
            base_model,
            router_z_loss_coef=getattr(getattr(base_model, "moe_config", None), "z_loss_coef", 0.0),
            tokenizer=tokenizer,
            run_dir=run_dir,
            overrides=overrides,
        )
        self._overrides = {**self._overrides, **fields}
        self._tensors: Mapping[str, Tensor] = {}
        self._trained_with: RunConfig | None = None
        self._check()
        if profile is not None:
            own = RouterHooks(base_model).digests
            check_same_routers(profile.routers, own, "the profile", "this model")
            self._choose(profile)
        elif experts is not None:
            check_rule(experts)

    @property
    def adapter(self) -> Adapter:
        """The trained adapter, by the place of each matrix; on every rank.

        Raises:
            ConfigError: `train` has not been called yet.
        """
        if self._trained_with is None:
            raise ConfigError("there is no adapter yet; call train(...) first.")
        return adapter_of(self._tensors, self._trained_with.adapter, self.model.architecture)

    def train(  # type: ignore[override]  # a task in place of a format of data
        self,
        dataset: Texts,
        learning_rate: float = ADAPTER_RATE,
        num_epochs: float | None = None,
        *,
        task: str = "text_generation",
        weight_decay: float = 0.0,
        **options: Any,
    ) -> TrainingResult:
        """Train the adapter, or train it on.

        Args:
            dataset: Strings in a list, a table, a dataset, a path, a hub id, ...; for the task
                "instructions", conversations.
            learning_rate: Peak of the cosine schedule.
            num_epochs: Passes over the data, 1 unless given; may be a fraction.
            task: "text_generation" learns all of the text, "instructions" answers alone.
            weight_decay: Decay of AdamW, of A and B.
            options: Others of `MoETrainer.train`, such as batch_size=4 or eval_dataset=texts.

        Raises:
            MoEError: The data, an argument or the machine does not allow the run.
        """
        options = {"data_format": format_of(task), **options}
        if (self._by_usage or self._experts) and self._profile is None:
            self._choose(
                task_profile(
                    self.model,
                    self.tokenizer,
                    dataset,
                    options["data_format"],
                    length=self._length(options.get("sequence_length")),
                    sequences=_SEQUENCES,
                )
            )
        return super().train(
            dataset,
            num_epochs=num_epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **options,
        )

    def merged(self) -> MoEModel:
        """A copy of the model with the adapter in its weights.

        Raises:
            ConfigError: `train` has not been called yet.
        """
        adapter = self.adapter
        model = copy.deepcopy(self.model)
        merge_into(model, adapter)
        return model

    def expert_movement(self) -> dict[int, Tensor]:
        """How far each routed expert has moved, |s B A| / |W| over all of its matrices.

        Returns:
            By number of the layer, from 1: [experts].

        Raises:
            ConfigError: `train` has not been called yet.
        """
        return expert_movement(self.model, self.adapter)

    def evaluate(self, dataset: Texts, **options: Any) -> EvalResult:
        """Measure the model with its adapter, if there is one yet, on held-out text.

        Args:
            dataset: As in `train`.
            options: As in `MoETrainer.evaluate`.

        Raises:
            MoEError: As in `MoETrainer.evaluate`.
        """
        if self._trained_with is None:
            return super().evaluate(dataset, **options)
        adapters = ModelAdapters(self.model)
        adapters.add(_NAME, self.adapter)
        try:
            with adapters.using(_NAME):
                return super().evaluate(dataset, **options)
        finally:
            adapters.remove(_NAME)

    def save_adapter(self, path: str | Path, *, base: str | None = None) -> None:
        """Write the adapter in PEFT's format, for PEFT and for `ModelAdapters`; on rank 0.

        Args:
            path: A new or empty folder.
            base: Name or path of the base, which programs load unless they are given another one.

        Raises:
            ConfigError: `train` has not been called yet.
            CheckpointError: The folder cannot be written.
            MappingError: No family can express the model, or PEFT not the adapter.
        """
        adapter = self.adapter
        if world.rank() == 0:
            save_adapter(adapter, self.model, user_path(path), base=base)

    def _check(self) -> None:
        config = self._with_overrides()
        config.validate()
        check_fitting(config.adapter, config.architecture)

    def _choose(self, profile: RoutingProfile) -> None:
        """Choose experts and ranks by what a task uses."""
        self._profile = profile
        given: dict[str, Any] = {}
        if self._experts is not None:
            chosen = chosen_experts(self._experts, profile)
            given["adapter.targets"] = on_experts(self._targets, chosen)
            for it in chosen if world.rank() == 0 else ():
                logger.info("%s", it)
        if self._by_usage:
            sizes = (self.model.hidden_size, self._with_overrides().expert_hidden_size)
            rank = self._overrides["adapter.rank"]
            given["adapter.ranks"] = ranks_by_usage(profile, rank, min(sizes))
        self._overrides = {**self._overrides, **given}
        self._check()

    def _trained(
        self, config: RunConfig, data: PreparedData, *, fresh: bool
    ) -> tuple[RunResult, WeightMap]:
        """Run, and keep the trained adapter; the weights are those that there were."""
        result, tensors = self._ended(config, data, self._tensors, fresh=fresh)
        self._tensors, self._trained_with = tensors, result.config
        return result, dict(self.model.state_dict())


def _ranks(given: object) -> tuple[bool, list[str]]:
    """Whether ranks go by usage, and those of their own as `adapter.ranks` takes them."""
    if given is None or given == BY_USAGE:
        return given == BY_USAGE, []
    if isinstance(given, Mapping):
        return False, [f"{it}={whole(f'the rank of {it}', rank)}" for it, rank in given.items()]
    raise ConfigError(
        f"ranks ({shown(given)}) must be '{BY_USAGE}' or ranks by selector, such as "
        "{'experts@2:0': 16}."
    )


def _sharing(given: object) -> str:
    words = {True: "own", False: "shared", "shared_a": "shared_a"}
    if isinstance(given, bool | str) and given in words:
        return words[given]
    raise ConfigError(
        f"expert_wise_adaptation ({shown(given)}) must be True (an adapter for each expert), False "
        "(one for all experts of a layer) or 'shared_a' (one A, and a B for each expert)."
    )
