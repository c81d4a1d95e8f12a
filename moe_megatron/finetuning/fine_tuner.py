"""`FineTuner`: tune a `MoEModel` from a few lines of Python, and keep most of it as it is.

It is a `MoETrainer` that freezes: what is trained becomes the fields of `finetune` in the same
configuration of the same run.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_megatron.config import RunConfig
from moe_megatron.config.arguments import explained, real, shown, whole
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.config.selector import Selector
from moe_megatron.errors import ConfigError
from moe_megatron.finetuning.named_tasks import KINDS
from moe_megatron.finetuning.task_profile import task_profile
from moe_megatron.finetuning.unfreezing import (
    UnfreezeAt,
    ends_of_stages,
    first_stage,
    next_stage,
)
from moe_megatron.finetuning.used_experts import UsedExperts, train_used, used_experts
from moe_megatron.mcore import world
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.storage import WeightMap
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.stages import until
from moe_megatron.run.start import RunResult
from moe_megatron.training.mixture import data_given
from moe_megatron.training.options import check_overrides
from moe_megatron.training.results import TrainingResult
from moe_megatron.training.texts import Texts
from moe_megatron.training.trainer import MoETrainer

Freeze = bool | Sequence[int] | Mapping[int, Sequence[int]]
"""Which routed experts are frozen: all, these of every layer, or these by the number of a layer."""

logger = logging.getLogger(__name__)


@explained
class FineTuner(MoETrainer):
    """Tunes a `MoEModel` on a task.

        tuner = FineTuner(OLMoE.from_pretrained("my_model"), freeze_experts=True)
        tuner.train(["some text", "some more"], num_epochs=2)
        tuner.save_model("tuned")

    Args:
        model: The model to tune; its weights are replaced by the tuned ones.
        freeze_experts: Routed experts to leave as they are: True for all, numbers (from 0) of
            experts in every layer, or a mapping from layers (from 1) to such numbers.
        router_learning_rate: Of the routers: a number, or a multiple of the learning rate, such as
            "0.1x"; None: the learning rate.
        expert_learning_rate: As `router_learning_rate`, of routed experts.
        train: Selectors of what is trained, such as ["router", "experts@2-4:0,3"]; None: all.
        freeze: Selectors of what is frozen although `train` names it.
        tokenizer: As in `MoETrainer`.
        run_dir: As in `MoETrainer`.
        overrides: Any field of the run configuration that no argument sets, such as
            {"finetune.attention_learning_rate": 1e-6}.

    Raises:
        ConfigError: An argument is invalid, or names what the model does not have.
    """

    def __init__(  # noqa: PLR0913  # what people set, by the names that they know
        self,
        model: MoEModel,
        freeze_experts: Freeze = False,
        router_learning_rate: float | str | None = None,
        expert_learning_rate: float | str | None = None,
        *,
        train: Sequence[str] | None = None,
        freeze: Sequence[str] = (),
        tokenizer: Any = None,
        run_dir: str | Path = "runs/finetuner",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        frozen = [*_texts("freeze", freeze), *_experts(freeze_experts)]
        wanted: dict[str, Any] = {
            "finetune.train": None if train is None else _texts("train", train),
            "finetune.freeze": frozen or None,
            "finetune.router_learning_rate": router_learning_rate,
            "finetune.expert_learning_rate": expert_learning_rate,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        for name in given.keys() & (overrides or {}).keys():
            raise ConfigError(
                f"{name} is given twice, by overrides and by an argument of FineTuner(...); keep "
                "one of them."
            )
        coefficient = getattr(getattr(model, "moe_config", None), "z_loss_coef", 0.0)
        super().__init__(
            model,
            router_z_loss_coef=coefficient,
            tokenizer=tokenizer,
            run_dir=run_dir,
            overrides={**(overrides or {}), **given},
        )
        self._unfreeze: tuple[UnfreezeAt, ...] = ()
        self._with_overrides().validate()

    def train(  # type: ignore[override]  # noqa: PLR0913  # a task in place of a format of data
        self,
        dataset: Texts = None,
        task: str = "text_generation",
        num_epochs: float | None = None,
        *,
        tasks: Mapping[str, Texts] | None = None,
        weights: Mapping[str, float] | None = None,
        base_dataset: Texts = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        beta: float | None = None,
        unfreeze: Sequence[str] = (),
        **options: Any,
    ) -> TrainingResult:
        """Tune, and put the tuned weights into the model.

        Args:
            dataset: Strings in a list, a table, a dataset, a path, a hub id, ...; for the task
                "instructions", conversations; for "preferences", pairs of answers.
            task: "text_generation" learns all of the text, "instructions" answers alone, and
                "preferences" to prefer the chosen answer (DPO, arXiv:2305.18290).
            num_epochs: Passes over the data, 1 unless given; may be a fraction.
            tasks: In place of `dataset`, data of several tasks by their names. 5 % of each are held
                out and evaluated before the first step, too.
            weights: Share of each task, in any unit; None: in proportion to their tokens.
            base_dataset: Data of what the model knows already, which is evaluated beside tasks.
            learning_rate: Peak of the cosine schedule, of all that has no rate of its own.
            weight_decay: Decay of AdamW, of what is trained.
            beta: For "preferences": how close to stay to the model as it is now; None: 0.1.
            unfreeze: What is trained, too, from which step on, such as ["100:attention"] (gradual
                unfreezing, arXiv:1801.06146). Each part is a run of its own beside the last one.
            options: Others of `MoETrainer.train`, such as batch_size=4 or eval_dataset=texts.

        Raises:
            MoEError: The data, an argument or the machine does not allow the run.
        """
        options = {"data_format": format_of(task), **options}
        self._unfreeze = _changes(unfreeze, resume=bool(options.get("resume")))
        if tasks is not None and task == PREFERENCES:
            raise ConfigError(f"tasks of train(...) are no {PREFERENCES}; train those alone.")
        data = data_given(dataset, tasks, weights, base_dataset, options.get("eval_dataset"))
        return super().train(
            data,
            num_epochs=num_epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **_with_beta(options, beta, task),
        )

    def train_used_experts(
        self,
        dataset: Texts,
        share: float = 0.2,
        *,
        task: str = "text_generation",
        num_sequences: int = 128,
    ) -> tuple[UsedExperts, ...]:
        """Train, of the routed experts, only those that a task uses (ESFT, arXiv:2407.01906).

        The model reads some of the data, in this process, and counts where its routers send tokens.
        Each layer's fewest experts with this share of them are chosen; nothing else is trained but
        what `train` of the constructor names besides experts.

        Args:
            dataset: Data of the task.
            share: Share of the tokens that the chosen experts got, above 0 and up to 1.
            task: As in `train`.
            num_sequences: Sequences to read.

        Returns:
            The chosen experts of each layer, with their shares.

        Raises:
            ConfigError: An argument is out of range, or the model has no experts.
            DataError: There is no text, or it cannot be read.
        """
        profile = task_profile(
            self.model,
            self.tokenizer,
            dataset,
            format_of(task),
            length=self._length(None),
            sequences=whole("num_sequences", num_sequences),
        )
        chosen = used_experts(profile, share)
        train = self._overrides.get("finetune.train", ["all"])
        self._overrides = {**self._overrides, "finetune.train": train_used(train, chosen)}
        self._with_overrides().validate()
        for it in chosen if world.rank() == 0 else ():
            logger.info("%s", it)
        return chosen

    def _trained(
        self, config: RunConfig, data: PreparedData, *, fresh: bool
    ) -> tuple[RunResult, WeightMap]:
        """Run, and give the trained weights; what bf16 alone has changed stays as it was."""
        result, weights = self._in_stages(config, data, fresh=fresh)
        if result.config.training.precision == "fp32":
            return result, weights
        before = self.model.state_dict()
        return result, {name: _unrounded(before[name], new) for name, new in weights.items()}

    def _in_stages(
        self, config: RunConfig, data: PreparedData, *, fresh: bool
    ) -> tuple[RunResult, WeightMap]:
        """One run, or one for each part of a gradual unfreezing."""
        if not self._unfreeze:
            return super()._trained(config, data, fresh=fresh)
        *ends, last = ends_of_stages(config, self._unfreeze)
        stage, wanted, past = first_stage(config), Path(config.run_dir), None
        for end in ends:
            part = until(stage, end, wanted.with_name(f"{wanted.name}-to-step-{end}"))
            result, weights = super()._trained(part, data, fresh=True)
            past = result if past is None else _joined(past, result)
            if result.checkpoint is None or result.outcome.steps < end:
                return past, weights  # somebody has stopped it
            stage = next_stage(stage, self._unfreeze, end, result.checkpoint.parent)
        result, weights = super()._trained(until(stage, last, wanted), data, fresh=True)
        assert past is not None  # there is a change, so there is a part before it
        return _joined(past, result), weights


def _joined(past: RunResult, result: RunResult) -> RunResult:
    """What came of a run and of one that went on from it, as of one."""
    seconds = past.outcome.seconds + result.outcome.seconds
    outcome = replace(result.outcome, seconds=seconds)
    return replace(result, outcome=outcome, history=past.history.followed_by(result.history))


def _changes(given: object, *, resume: bool) -> tuple[UnfreezeAt, ...]:
    """What is trained from which step on."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(
            f"unfreeze ({shown(given)}) must be a list of steps and selectors, such as "
            "['100:attention']."
        )
    if given and resume:
        raise ConfigError(
            "resume=True continues one run, and unfreeze makes several; leave resume out to begin "
            "anew from the weights that the model has."
        )
    return tuple(UnfreezeAt.read(str(it)) for it in given)


def _unrounded(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The weights after a training in bf16, with those that were only rounded as they were."""
    old = before.to(after.device)
    rounded = old.to(torch.bfloat16).to(after.dtype)
    return torch.where(after == rounded, old.to(after.dtype), after)


def _with_beta(options: dict[str, Any], beta: float | None, task: str) -> dict[str, Any]:
    """The options of a call, with its beta among their overrides."""
    if beta is None:
        return options
    if task != PREFERENCES:
        raise ConfigError(
            f"beta ({shown(beta)}) has no effect on the task {shown(task)}; leave it out, or give "
            f"task={PREFERENCES!r}."
        )
    overrides = check_overrides(options.get("overrides") or {})
    if "preferences.beta" in overrides:
        raise ConfigError(
            "preferences.beta is given twice, by overrides and by beta of train(...); keep one of "
            "them."
        )
    checked = real("beta", beta, example=0.1, above=True)
    return {**options, "overrides": {**overrides, "preferences.beta": checked}}


def format_of(task: str) -> str:
    """The format of a task's data.

    Raises:
        ConfigError: There is no such task.
    """
    if task in KINDS:
        return KINDS[task]
    hint = nearest(str(task), KINDS)
    raise ConfigError(f"task ({shown(task)}) must be {join_words(list(KINDS))}.{hint}")


def _texts(name: str, given: object) -> list[str]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [str(it) for it in given]
    raise ConfigError(f"{name} ({shown(given)}) must be a list of selectors, such as ['router'].")


def _experts(given: Freeze) -> list[str]:
    """Selectors of the experts to freeze."""
    if isinstance(given, bool):
        return ["experts"] if given else []
    if isinstance(given, Mapping):
        layers = {whole("a layer of freeze_experts", it): them for it, them in given.items()}
        return [str(Selector("experts", (it,), _numbers(them))) for it, them in layers.items()]
    return [str(Selector("experts", (), numbers))] if (numbers := _numbers(given)) else []


def _numbers(given: object) -> tuple[int, ...]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        return tuple(sorted(whole("an expert of freeze_experts", it, least=0) for it in given))
    raise ConfigError(
        f"freeze_experts ({shown(given)}) must be True or False, numbers of experts such as [0, 3],"
        " or numbers by layers such as {2: [0, 3]}."
    )
