"""`MoETrainer`: train a `MoEModel` from a few lines of Python, in Megatron's own loop.

It turns its arguments into the same configuration and the same call as the command line does. The
model's weights are copied to Megatron, in any parallel layout, and back when training ends. Under
`torchrun` the same script uses all processes.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_megatron.config import DataConfig, RunConfig, apply_overrides
from moe_megatron.config.arguments import explained, one_of, whole
from moe_megatron.config.data import TEXT
from moe_megatron.data.instructions.stored import holds_instructions
from moe_megatron.errors import ConfigError, RecoveryError
from moe_megatron.files import user_path
from moe_megatron.live.dashboard_process import DashboardProcess
from moe_megatron.mcore import world
from moe_megatron.model.evaluating import evaluating
from moe_megatron.model.given import model_given
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.storage import WeightMap
from moe_megatron.run.collapse import collapse_warning
from moe_megatron.run.divergence import divergence
from moe_megatron.run.history import History
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import Attachments, RunResult, start
from moe_megatron.text.tokenizer import Tokenizer
from moe_megatron.training import texts as text_data
from moe_megatron.training.balancing import Balancing, balancing_fields
from moe_megatron.training.dashboard_sink import DashboardSink
from moe_megatron.training.exchange import exchange_of
from moe_megatron.training.mixture import TaskMixture
from moe_megatron.training.options import (
    TrainOptions,
    check_overrides,
    configure,
    only_of_call,
)
from moe_megatron.training.processes import train_in_processes
from moe_megatron.training.results import EvalResult, TrainingResult
from moe_megatron.training.resuming import resumed
from moe_megatron.training.scoring import batches
from moe_megatron.training.texts import Texts
from moe_megatron.webapp.report import write_report

_LENGTH = 256

logger = logging.getLogger(__name__)


@explained
class MoETrainer:
    """Trains a `MoEModel`.

        trainer = MoETrainer(MoEModel(num_layers=2))
        result = trainer.train(["some text", "some more"], num_epochs=2)

    Args:
        model: The model to train; its weights are replaced by the trained ones.
        load_balancing: A `LoadBalancer`, or the name or names of balancing methods, such as
            "auxiliary_loss" or "none". Routers are a matter of the model, which must agree. None:
            that of the model, which is "auxiliary_loss" unless it was built with another.
        router_z_loss_coef: Weight of the router z-loss (ST-MoE, arXiv 2202.08906).
        aux_loss_coef: Weight of the auxiliary loss; None keeps the model's.
        tokenizer: "demo", a tokenizer folder, a hub id or a tokenizer; None takes the model's, or
            "demo" if it has none. The model keeps it.
        run_dir: Folder for metrics and reports; each call of `train` uses a free name like it.
        overrides: Any field of the run configuration that no argument sets, such as
            {"parallel.expert_parallel_size": 2, "checkpoint.save_interval": 100}.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        model: MoEModel,
        load_balancing: Balancing | None = None,
        router_z_loss_coef: float = 0.01,
        *,
        aux_loss_coef: float | None = None,
        tokenizer: Any = None,
        run_dir: str | Path = "runs/trainer",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model_given(model, type(self).__name__)
        self.history = History()
        self._wanted_tokenizer = tokenizer
        self._run_dir: Path | None = None
        self._processes: int | None = None  # to start; None: those that there are
        self._shown: DashboardSink | None = None
        self._overrides = check_overrides(overrides or {})
        chosen: dict[str, Any] = {
            "checkpoint.save_interval": None,
            "run_dir": str(user_path(run_dir)),
        }
        chosen |= balancing_fields(
            load_balancing, model.moe_config, router_z_loss_coef, aux_loss_coef
        )
        self._base = apply_overrides(
            RunConfig(
                model=model.model_config,
                moe=model.moe_config,
                data=DataConfig(vocab_size=model.vocab_size, sequence_length=self._length(None)),
            ),
            chosen,
        )

    @property
    def run_dir(self) -> Path | None:
        """Folder of the last training; None before the first."""
        return self._run_dir

    @property
    def dashboard(self) -> DashboardProcess | None:
        """The server of the last training with `dashboard=True`; None without one."""
        return None if self._shown is None else self._shown.process

    def _show(self, dashboard: bool) -> None:
        """Close the dashboard of an earlier training, and prepare for one of this."""
        if dashboard and self._processes is not None:
            raise ConfigError(
                "dashboard=True shows a training in this process; for one in processes of its own, "
                "start `moe-megatron dashboard` in another terminal."
            )
        if (before := self.dashboard) is not None:
            before.close()
        self._shown = DashboardSink() if dashboard else None

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns text into the model's ids and back; it is the model's, too.

        Raises:
            DataError: It cannot be loaded, or has more tokens than the model.
        """
        if self._wanted_tokenizer is not None or self.model.tokenizer is None:
            wanted = self._wanted_tokenizer or "demo"
            self.model.tokenizer = text_data.tokenizer_for(wanted, self.model.vocab_size)
            self._wanted_tokenizer = None
        assert self.model.tokenizer is not None
        return self.model.tokenizer

    def train(  # noqa: PLR0913  # what people set, by the names that they know
        self,
        train_data: Texts | None = None,
        eval_dataset: Texts | None = None,
        batch_size: int = 8,
        learning_rate: float = 1e-3,
        num_epochs: float | None = None,
        *,
        train_dataset: Texts | None = None,
        max_steps: int | None = None,
        sequence_length: int | None = None,
        text_key: str = "text",
        data_format: str = TEXT,
        gradient_accumulation_steps: int = 1,
        warmup_steps: int | None = None,
        weight_decay: float | None = None,
        eval_interval: int | None = None,
        expert_dropout: float | None = None,
        load_balancing_loss_coef: float | None = None,
        router_z_loss_coef: float | None = None,
        overrides: Mapping[str, Any] | None = None,
        resume: bool = False,
        dashboard: bool = False,
    ) -> TrainingResult:
        """Train, and put the trained weights into the model.

        Args:
            train_data: Strings in a list, a table with a column of text, a dataset, a path, a hub
                id, ...: docs/data.md lists all.
            eval_dataset: As `train_data`; the model is evaluated on it when training ends.
            batch_size: Sequences of a batch, over all processes.
            learning_rate: Peak of the cosine schedule.
            num_epochs: Passes over the data, 1 unless given; may be a fraction.
            train_dataset: Another name for `train_data`.
            max_steps: Maximum number of steps.
            sequence_length: Tokens per sequence; None uses 256, or the model's limit if smaller.
            text_key: Column or key of the text.
            data_format: "text"; or, of conversations whose answers alone are learned, "messages",
                "sharegpt", "alpaca", "completion", "my_format.py:read", or "instructions" for what
                the first rows show. docs/data.md describes them.
            gradient_accumulation_steps: Batches whose gradients make one step together.
            warmup_steps: Steps until the peak of the learning rate; None: a tenth, at most 100.
            weight_decay: Decay of AdamW; None: 0.1.
            eval_interval: Steps between evaluations; None evaluates at the end.
            expert_dropout: Probability of dropping an inner feature of an expert, in training
                only (Switch, arXiv 2101.03961); None: the model's, usually 0.
            load_balancing_loss_coef: Weight of the auxiliary loss in this training.
            router_z_loss_coef: Weight of the router z-loss in this training.
            overrides: As those of the constructor, beside them, in this training.
            resume: Continue the last run of `run_dir` from its newest checkpoint, with its
                optimizer and at its place in the data, instead of starting a new one. It needs
                `checkpoint.save_interval` in `overrides`.
            dashboard: Show the training in a browser: a server beside it prints its address, and
                stays until the program ends or `trainer.dashboard` is closed.

        Raises:
            MoEError: The data, an argument or the machine does not allow the run.
        """
        if not isinstance(resume, bool):
            raise ConfigError(
                f"resume ({resume!r:.60}) must be True or False; the run to continue is the last "
                "one of the trainer's run_dir."
            )
        self._show(dashboard)
        overrides = self._overrides | only_of_call(overrides or {}, self._overrides)
        options = TrainOptions(
            batch_size=batch_size,
            learning_rate=learning_rate,
            num_epochs=1 if num_epochs is None else num_epochs,
            max_steps=max_steps,
            sequence_length=self._length(sequence_length),
            gradient_accumulation_steps=gradient_accumulation_steps,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            eval_interval=eval_interval,
            expert_dropout=expert_dropout,
            load_balancing_loss_coef=load_balancing_loss_coef,
            router_z_loss_coef=router_z_loss_coef,
        )
        texts = one_of(train_data=train_data, train_dataset=train_dataset)
        tokenizer = self.tokenizer
        index = partial(text_data.index_data, length=options.sequence_length)
        how = (tokenizer, text_key, data_format)
        tasks = None
        if isinstance(texts, TaskMixture):
            tasks = texts.indexed(lambda given, name: index(given, *how, name))
            train_prefix, num_tokens = Path(tasks.prefixes[0]), tasks.tokens
        else:
            train_prefix, num_tokens = index(texts, *how)
        validation: tuple[str, ...] = ()
        if eval_dataset is not None:
            prefix, _ = index(eval_dataset, *how, "eval_dataset")
            holds_instructions([train_prefix, prefix])  # refuses one of each
            validation = ("1.0", str(prefix))
        for line in options.cautions(num_tokens, epochs_given=num_epochs is not None):
            if world.rank() == 0:
                logger.warning("%s", line)
        config = configure(
            self._base,
            options,
            overrides,
            steps=options.steps(num_tokens),
            evaluates=bool(validation) or tasks is not None,
            world_size=self.world_size,
        )
        # What a command that resumes the run finds there.
        given = {"data.paths": (str(train_prefix),)} if tasks is None else tasks.fields
        config = apply_overrides(config, {**given, "data.tokenizer": str(tokenizer.directory)})
        data = PreparedData(
            paths=("1.0", str(train_prefix)) if tasks is None else tasks.paths,
            tasks=() if tasks is None else tuple(range(len(tasks.names))),
            held_out=() if tasks is None else tasks.held_out,
            cache=train_prefix.parent / "indices",
            vocab_size=self.model.vocab_size,
            end_of_document=tokenizer.eod_id,
            validation_paths=validation,
            tokenizer=tokenizer.directory,
        )
        if not resume:
            return self._run(config, data, fresh=True)
        return self._run(resumed(config, overrides), data, fresh=False)

    def evaluate(
        self,
        dataset: Texts,
        *,
        batch_size: int = 8,
        sequence_length: int | None = None,
        text_key: str = "text",
        data_format: str = TEXT,
    ) -> EvalResult:
        """Measure the model on held-out text, in this process.

        Args:
            dataset: As `train_data` of `train`.
            batch_size: Sequences per forward pass.
            sequence_length: Tokens per sequence; None as in `train`.
            text_key: Column or key of the text.
            data_format: As in `train`; of conversations, answers alone are measured.

        Raises:
            ConfigError: There is no token to predict.
            DataError: There is no text, or it cannot be read.
        """
        batch_size = whole("batch_size", batch_size)
        length = self._length(sequence_length)
        how = (self.tokenizer, text_key, data_format, "dataset")
        prefix, _ = text_data.index_data(dataset, *how, length=length)
        learned = self.model.model_config.position_embedding == "learned_absolute"
        most = self.model.model_config.max_position_embeddings if learned else None
        total, count = 0.0, 0
        with torch.no_grad(), evaluating(self.model):
            for batch in batches(prefix, length, batch_size, most):
                output = self.model(
                    batch.input_ids, attention_mask=batch.valid, labels=batch.labels
                )
                assert output.lm_loss is not None
                total += float(output.lm_loss) * batch.predicted
                count += batch.predicted
        return EvalResult(loss=total / count, tokens=count)

    def save_model(self, path: str | Path) -> None:
        """Write weights, configuration and tokenizer as safetensors and JSON; on rank 0.

        Raises:
            CheckpointError: The folder cannot be written.
            DataError: The tokenizer cannot be loaded or written.
        """
        if world.rank() == 0:
            _ = self.tokenizer  # the model has it from now on
            self.model.save_pretrained(path)

    def visualize_routing(self, save_to: str | Path = "routing.html") -> Path:
        """Write the HTML report of the last training, on rank 0: loss, load, routers, dead experts.

        Raises:
            ConfigError: `train` has not been called yet.
        """
        if self._run_dir is None:
            raise ConfigError("there is no routing to show yet; call train(...) first.")
        path = user_path(save_to)
        return write_report(self._run_dir, path) if world.rank() == 0 else path

    @property
    def world_size(self) -> int:
        """Number of processes that train."""
        return world.size() if self._processes is None else self._processes

    def _trained(
        self, config: RunConfig, data: PreparedData, *, fresh: bool
    ) -> tuple[RunResult, WeightMap]:
        """Run, and give the trained weights."""
        return self._ended(config, data, {}, fresh=fresh)

    def _ended(
        self,
        config: RunConfig,
        data: PreparedData,
        adapters: Mapping[str, Tensor],
        *,
        fresh: bool,
    ) -> tuple[RunResult, WeightMap]:
        """A run to its end, here or in processes of its own: weights, or tensors of adapters."""
        if (number := self._processes) is not None:
            return train_in_processes(number, self.model, adapters, config, data, fresh=fresh)
        exchange = exchange_of(config, self.model, adapters)
        shown = [] if self._shown is None else [self._shown]
        attached = Attachments(sinks=shown, callbacks=[exchange], model_hooks=[exchange.load])
        result = start(config, data=data, fresh=fresh, attached=attached)
        return result, exchange.trained

    def _with_overrides(self) -> RunConfig:
        """The configuration of the trainer, before that of a call."""
        return apply_overrides(self._base, self._overrides)

    def _run(self, config: RunConfig, data: PreparedData, *, fresh: bool) -> TrainingResult:
        result, weights = self._trained(config, data, fresh=fresh)
        self.history, self._run_dir = result.history, result.run_dir
        problem = divergence(result.history)
        if world.size() > 1:  # only rank 0 has the history
            problem = world.agree_on_text(problem)
        if problem:
            raise RecoveryError(f"{problem} The model keeps the weights it had before.")
        self.model.load_state_dict(weights)
        if not fresh and world.rank() == 0:  # with the steps before
            self.history = History.read(result.run_dir)
        if warning := collapse_warning(result.config, self.history):
            logger.warning("%s", warning)
        return _training_result(result, self.history)

    def _length(self, wanted: int | None) -> int:
        limit = self.model.model_config.max_position_embeddings or _LENGTH
        return min(_LENGTH, limit) if wanted is None else whole("sequence_length", wanted)


def _training_result(result: RunResult, history: History) -> TrainingResult:
    last = history.last_evaluation
    return TrainingResult(
        steps=result.outcome.steps,
        losses=history.losses,
        tokens=sum(record.tokens for record in history.steps),
        seconds=result.outcome.seconds,
        validation_loss=None if last is None else last.loss,
        interrupted=result.outcome.interrupted,
        run_dir=result.run_dir,
        checkpoint=result.checkpoint,
        routing=result.outcome.profile,
        history=history,
    )
