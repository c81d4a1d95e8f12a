"""`MoETrainer`: train a `MoEModel` from a few lines of Python, in Megatron's own loop.

It turns its arguments into the same configuration and the same call as the command line does. The
model's weights are copied to Megatron, in any parallel layout, and back when training ends. Under
`torchrun` the same script uses all processes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.data.index import read_tokens
from moe_megatron.data.tokenizer import TokenizerInfo
from moe_megatron.errors import ConfigError
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.state.weights import WeightMap, collect_weights, load_weights
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.run.history import History
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import Attachments, RunResult, start
from moe_megatron.training import texts as text_data
from moe_megatron.training.results import EvalResult, TrainingResult
from moe_megatron.training.texts import Texts
from moe_megatron.viz.report import write_report

_METHODS = {"auxiliary_loss": "aux_loss", "none": "none"}
_LARGEST_MICRO_BATCH = 8


class MoETrainer:
    """Trains a `MoEModel`.

        trainer = MoETrainer(MoEModel(num_layers=2))
        result = trainer.train(["some text", "some more"], num_epochs=2)

    Args:
        model: The model to train; its weights are replaced by the trained ones.
        load_balancing: "auxiliary_loss", "none", or a value of `moe.load_balancing`.
        router_z_loss_coef: Weight of the router z-loss (ST-MoE, arXiv 2202.08906).
        aux_loss_coef: Weight of the auxiliary loss; None keeps the model's.
        tokenizer: "demo", a tokenizer folder or a hub id.
        run_dir: Folder for metrics and reports; each call of `train` uses a free name like it.
        overrides: Any field of the run configuration, such as
            {"parallel.expert_parallel_size": 2, "checkpoint.save_interval": 100}.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        model: MoEModel,
        load_balancing: str = "auxiliary_loss",
        router_z_loss_coef: float = 0.01,
        *,
        aux_loss_coef: float | None = None,
        tokenizer: str = "demo",
        run_dir: str | Path = "runs/trainer",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.history = History()
        self._tokenizer_name = tokenizer
        self._run_dir: Path | None = None
        chosen: dict[str, Any] = {
            "moe.load_balancing": _METHODS.get(load_balancing, load_balancing),
            "moe.z_loss_coef": router_z_loss_coef,
            "checkpoint.save_interval": None,
            "run_dir": str(run_dir),
        }
        if aux_loss_coef is not None:
            chosen["moe.aux_loss_coef"] = aux_loss_coef
        self._base = apply_overrides(
            RunConfig(model=model.model_config, moe=model.moe_config),
            {**chosen, **(overrides or {})},
        )

    def train(
        self,
        train_data: Texts,
        eval_dataset: Texts | None = None,
        batch_size: int = 8,
        learning_rate: float = 1e-3,
        num_epochs: float = 1,
        *,
        max_steps: int | None = None,
        sequence_length: int | None = None,
        text_key: str = "text",
    ) -> TrainingResult:
        """Train, and put the trained weights into the model.

        Args:
            train_data: A list of strings, a path, a hub id or a `datasets.Dataset`.
            eval_dataset: As `train_data`; the model is evaluated on it when training ends.
            batch_size: Sequences per step, over all processes.
            learning_rate: Peak of the cosine schedule.
            num_epochs: Passes over the data; may be a fraction.
            max_steps: Maximum number of steps.
            sequence_length: Tokens per sequence; None uses 256, or the model's limit if smaller.
            text_key: Column or key of the text.

        Raises:
            MoEError: The data, an argument or the machine does not allow the run.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size ({batch_size}) must be a whole number, at least 1.")
        tokenizer = self._tokenizer()
        train_prefix, num_tokens = text_data.index_texts(train_data, tokenizer, text_key)
        validation: tuple[str, ...] = ()
        if eval_dataset is not None:
            prefix, _ = text_data.index_texts(eval_dataset, tokenizer, text_key)
            validation = ("1.0", str(prefix))
        length = sequence_length or self._default_length()
        if num_epochs <= 0:
            raise ConfigError(f"num_epochs ({num_epochs}) must be greater than 0; try 1.")
        steps = max(1, math.ceil(num_tokens / length * num_epochs / batch_size))
        config = self._configure(
            steps=steps if max_steps is None else min(steps, max_steps),
            batch_size=batch_size,
            learning_rate=learning_rate,
            sequence_length=length,
            evaluates=bool(validation),
        )
        data = PreparedData(
            paths=("1.0", str(train_prefix)),
            cache=train_prefix.parent / "indices",
            vocab_size=self.model.vocab_size,
            end_of_document=tokenizer.eod_id,
            validation_paths=validation,
        )
        return self._run(config, data)

    def evaluate(
        self,
        dataset: Texts,
        *,
        batch_size: int = 8,
        sequence_length: int | None = None,
        text_key: str = "text",
    ) -> EvalResult:
        """Measure the model on held-out text, in this process.

        Args:
            dataset: As `train_data` of `train`.
            batch_size: Sequences per forward pass.
            sequence_length: Tokens per sequence; None as in `train`.
            text_key: Column or key of the text.

        Raises:
            ConfigError: There is no token to predict.
            DataError: There is no text, or it cannot be read.
        """
        prefix, _ = text_data.index_texts(dataset, self._tokenizer(), text_key)
        tokens = torch.from_numpy(read_tokens(prefix).astype("int64"))
        length = self._default_length() if sequence_length is None else sequence_length
        if length < 2 or len(tokens) < 2:
            raise ConfigError(
                f"sequences of {min(length, len(tokens))} token(s) have none to predict; give text "
                "and a sequence_length of at least 2 tokens."
            )
        total, count, was_training = 0.0, 0, self.model.training
        self.model.eval()
        with torch.no_grad():
            for batch in torch.split(_rows(tokens, length), batch_size):
                valid = (batch >= 0).long()
                output = self.model(batch.clamp_min(0), attention_mask=valid, labels=batch)
                predicted = int(valid[:, 1:].sum())
                assert output.lm_loss is not None
                total, count = total + float(output.lm_loss) * predicted, count + predicted
        self.model.train(was_training)
        return EvalResult(loss=total / count, tokens=count)

    def save_model(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors and JSON; on rank 0.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        if world.rank() == 0:
            self.model.save_pretrained(path)

    def visualize_routing(self, save_to: str | Path = "routing.html") -> Path:
        """Write the HTML report of the last training, on rank 0: loss, load, routers, dead experts.

        Raises:
            ConfigError: `train` has not been called yet.
        """
        if self._run_dir is None:
            raise ConfigError("there is no routing to show yet; call train(...) first.")
        path = Path(save_to)
        return write_report(self._run_dir, path) if world.rank() == 0 else path

    def _configure(
        self,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        sequence_length: int,
        evaluates: bool,
    ) -> RunConfig:
        parallel = self._base.parallel
        copies = parallel.data_parallel_size(world.size())
        per_process = batch_size // copies if batch_size % copies == 0 else batch_size
        micro = math.gcd(per_process, _LARGEST_MICRO_BATCH)
        return apply_overrides(
            self._base,
            {
                "training.train_steps": steps,
                "training.micro_batch_size": micro,
                "training.global_batch_size": batch_size,
                "training.learning_rate": learning_rate,
                "training.min_learning_rate": learning_rate / 10,
                "training.warmup_steps": min(steps // 10, 100),
                "training.eval_interval": steps if evaluates else None,
                "data.sequence_length": sequence_length,
                "data.vocab_size": self.model.vocab_size,
                "data.split": "95,5,0" if evaluates else "100,0,0",
            },
        )

    def _run(self, config: RunConfig, data: PreparedData) -> TrainingResult:
        exchange = _WeightExchange(self.model)
        attached = Attachments(callbacks=[exchange], model_hooks=[exchange.load])
        result = start(config, data=data, fresh=True, attached=attached)
        self.model.load_state_dict(exchange.trained)
        self.history, self._run_dir = result.history, result.run_dir
        return _training_result(result)

    def _tokenizer(self) -> TokenizerInfo:
        return text_data.tokenizer_for(self._tokenizer_name, self.model.vocab_size)

    def _default_length(self) -> int:
        return min(256, self.model.model_config.max_position_embeddings or 256)


class _WeightExchange(Callback):
    """Copies the model's weights to Megatron and collects the trained ones."""

    def __init__(self, model: MoEModel) -> None:
        self._model = model
        self.trained: WeightMap = {}

    def load(self, chunks: list[Any]) -> list[Any]:
        """Start from the weights of rank 0."""
        device = world.device()
        weights = {name: value.to(device) for name, value in self._model.state_dict().items()}
        for value in weights.values():
            dist.broadcast(value, src=0)
        load_weights(chunks, weights, self._model.architecture)
        return chunks

    def on_train_end(self, model: list[Any]) -> None:
        """Collect the trained weights on every rank."""
        self.trained = collect_weights(model, self._model.architecture)


def _training_result(result: RunResult) -> TrainingResult:
    history = result.history
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
    )


def _rows(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Consecutive tokens as [rows, length], the last row padded with -100."""
    padding = -len(tokens) % length
    return torch.nn.functional.pad(tokens, (0, padding), value=-100).view(-1, length)
