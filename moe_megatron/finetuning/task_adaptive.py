"""`TaskAdaptiveMoE`: one model adapted to one task after another, none of which touches another.

A task is kept as the tensors in which its model differs from the base: the embedding that
conditions its routers, experts of its own, and whatever else was trained. How a router is
conditioned is known to `routing.task_conditioned`, how one trains to `FineTuner`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moe_megatron.config import Architecture, RouterConfig
from moe_megatron.config.arguments import explained, shown, whole
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import CheckpointError, ConfigError, TopologyError
from moe_megatron.files import publish, user_path
from moe_megatron.finetuning.fine_tuner import FineTuner
from moe_megatron.model.given import model_given
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.storage import WeightMap
from moe_megatron.reading import read_json
from moe_megatron.routing.task_conditioned import DOWN, EMBEDDING, NAME, UP, folded
from moe_megatron.tensor_file import save_tensors
from moe_megatron.training.results import TrainingResult
from moe_megatron.training.texts import Texts

BASE, TASKS_FILE = "base", "tasks.json"

_EXPERT = re.compile(r"(.*\.moe\.experts\.)(\d+)(\..*)")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export of one task has left out."""

    folder: Path
    left_out: tuple[str, ...]
    """Sentences."""


@explained
class TaskAdaptiveMoE:
    """A model with tasks, each with routers and experts of its own beside the shared ones.

        model = TaskAdaptiveMoE(MoEModel.from_pretrained("my_model"), task_embedding_dim=16)
        model.adapt_to_task("code", ["def f():", "return 1"])
        model.generate("def", task="code")

    Args:
        base_model: What all tasks share; it stays as it is, bit for bit.
        task_embedding_dim: Numbers of the embedding by which a task conditions each router.
        experts_per_task: Experts that each layer gets for each task; 0: none.
        tokenizer: As in `MoETrainer`.
        run_dir: As in `MoETrainer`.
        overrides: As in `FineTuner`.

    Raises:
        ConfigError: An argument is invalid, or the model has another router than top_k.
        TopologyError: Processes cannot share the experts of a task and those of the base alike.
    """

    def __init__(
        self,
        base_model: MoEModel,
        task_embedding_dim: int = 16,
        *,
        experts_per_task: int = 1,
        tokenizer: Any = None,
        run_dir: str | Path = "runs/task_adaptive",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.base = model_given(base_model, type(self).__name__)
        self._width = whole("task_embedding_dim", task_embedding_dim)
        self._own = whole("experts_per_task", experts_per_task, least=0)
        self._tokenizer, self._run_dir, self._overrides = tokenizer, run_dir, overrides
        self._tasks: dict[str, WeightMap] = {}
        moe = self.base.moe_config
        if moe.num_experts is None or moe.router.name != "top_k":
            found = "no experts" if moe.num_experts is None else moe.router.name
            raise ConfigError(
                "TaskAdaptiveMoE conditions routers of the kind top_k, and the model has "
                f"{found}; give a MoEModel with router_type='top_k'."
            )
        size = int((overrides or {}).get("parallel.expert_parallel_size", 1))
        if (moe.num_experts + self._own) % size:
            raise TopologyError(
                f"expert_parallel_size ({size}) must divide the experts of a task's model, "
                f"{moe.num_experts} of the base and {self._own} of the task; choose another one, "
                "or another experts_per_task."
            )
        self._architecture = _grown(self.base.architecture, self._own, self._width)
        self._architecture_alone = _grown(self.base.architecture, self._own, None)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of their adaptation."""
        return tuple(self._tasks)

    def adapt_to_task(
        self,
        task_name: str,
        train_data: Texts,
        freeze_base_experts: bool = True,
        train_task_router: bool = True,
        **options: Any,
    ) -> TrainingResult:
        """Learn a task; what other tasks and the base compute stays as it is, bit for bit.

        Args:
            task_name: What `generate` calls it.
            train_data: As `dataset` of `FineTuner.train`.
            freeze_base_experts: Leave the shared experts alone; False: the task gets copies of them
                that are trained.
            train_task_router: Learn the embedding that conditions the routers.
            options: Others of `FineTuner.train`, such as task="instructions" or num_epochs=2.

        Raises:
            ConfigError: There is a task of this name, or nothing to train.
            MoEError: The data, an option or the machine does not allow the run.
        """
        if not isinstance(task_name, str) or not task_name.strip():
            raise ConfigError(f"task_name ({shown(task_name)}) must be a text, such as 'code'.")
        if task_name in self._tasks:
            raise ConfigError(
                f"there is already a task {shown(task_name)}; choose another name. Tasks are "
                f"{join_words(list(self._tasks), 'and')}."
            )
        first = self.base.moe_config.num_experts or 0
        own = [f"experts@*:{first}-{first + self._own - 1}"] if self._own else []
        selectors = own if freeze_base_experts else ["experts"]
        selectors = [*selectors, *([f"*.gate.{EMBEDDING}"] if train_task_router else [])]
        if not selectors:
            raise ConfigError(
                "nothing is left to train: experts_per_task is 0, freeze_base_experts is True and "
                "train_task_router is False; change one of them."
            )
        model = self._model(self._beginning())
        tuner = FineTuner(
            model,
            train=selectors,
            tokenizer=self._tokenizer,
            run_dir=self._run_dir,
            overrides=self._overrides,
        )
        self.base.tokenizer = tuner.tokenizer  # as a trainer gives its model one
        result = tuner.train(train_data, **options)
        self._tasks[task_name] = self._difference(model.state_dict())
        return result

    def model_of(self, task: str) -> MoEModel:
        """The model of a task, in evaluation mode, with the router that its embedding conditions.

        Raises:
            ConfigError: There is no such task.
        """
        return self._model({**self.base.state_dict(), **self._task(task)}).eval()

    def plain(self, task: str) -> MoEModel:
        """The model of a task with the router top_k, whose matrix is W + U diag(e) V.

        Raises:
            ConfigError: There is no such task.
        """
        tensors = {**self.base.state_dict(), **self._task(task)}
        for layer in [it.removesuffix(EMBEDDING) for it in tensors if it.endswith(EMBEDDING)]:
            embedding, down, up = (tensors.pop(f"{layer}{it}") for it in (EMBEDDING, DOWN, UP))
            name = f"{layer.removesuffix('gate.')}weight"
            tensors[name] = folded(tensors[name], embedding, down, up)
        return self._model(tensors, self._architecture_alone).eval()

    def generate(self, prompt: str, task: str, max_new_tokens: int = 64, **options: Any) -> str:
        """Continue a text as a task's model does.

        Args:
            prompt: The text.
            task: Name of the task.
            max_new_tokens: Tokens to add.
            options: Others of `MoEModel.generate_text`.

        Raises:
            ConfigError: There is no such task, or the model has no tokenizer.
        """
        return self.model_of(task).generate_text(prompt, max_new_tokens, **options)

    def export(self, task: str, path: str | Path) -> ExportReport:
        """Write one task as a Hugging Face folder, and say what that cannot hold.

        Raises:
            ConfigError: There is no such task.
            CheckpointError: The folder cannot be written.
            MappingError: No Hugging Face family can represent the model.
        """
        self.plain(task).save_pretrained(path, format="hugging_face")
        others = [name for name in self._tasks if name != task]
        left_out = [
            f"the embedding of {task} is folded into the matrix of each router (W + U diag(e) V), "
            "exact up to rounding, and cannot be told from it any more"
        ]
        if others:
            left_out.append(
                f"the tasks {join_words(others, 'and')}, with their routers and experts: a Hugging "
                "Face folder holds one router for each layer; export each to a folder of its own"
            )
        return ExportReport(user_path(path), tuple(left_out))

    def save(self, path: str | Path) -> None:
        """Write base and tasks to a new folder.

        Raises:
            CheckpointError: It exists, or cannot be written.
        """
        folder = user_path(path)
        if folder.exists():
            raise CheckpointError(f"{folder} exists; give a new folder, nothing is written over.")
        self.base.save_pretrained(folder / BASE)
        for number, tensors in enumerate(self._tasks.values()):
            whole_ones = {name: it.contiguous() for name, it in tensors.items()}
            save_tensors(whole_ones, folder / _task_file(number))
        facts = {"width": self._width, "experts": self._own, "tasks": list(self._tasks)}
        publish(folder / TASKS_FILE, json.dumps(facts, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """Load what `save` wrote.

        Args:
            path: The folder.
            options: Of the constructor: tokenizer, run_dir, overrides.

        Raises:
            CheckpointError: It is none, or damaged.
        """
        folder = user_path(path)
        try:
            facts = read_json(folder / TASKS_FILE)
            names = [str(name) for name in facts["tasks"]]
            shape = {"task_embedding_dim": facts["width"], "experts_per_task": facts["experts"]}
            found = [load_file(folder / _task_file(number)) for number in range(len(names))]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} is no whole TaskAdaptiveMoE ({type(error).__name__}); give a folder "
                "that its save(...) wrote."
            ) from error
        self = cls(MoEModel.from_pretrained(folder / BASE), **shape, **options)
        expected = {name: it.shape for name, it in self._beginning().items()}
        for name, tensors in zip(names, found, strict=True):
            if any(expected.get(key) != it.shape for key, it in tensors.items()):
                raise CheckpointError(
                    f"the task {shown(name)} in {folder} has other tensors than its base; save the "
                    "model again."
                )
            self._tasks[name] = tensors
        return self

    def _task(self, task: str) -> WeightMap:
        if task in self._tasks:
            return self._tasks[task]
        known = join_words(list(self._tasks), "and") if self._tasks else "none yet"
        hint = nearest(str(task), self._tasks)
        raise ConfigError(f"there is no task {shown(task)}.{hint} Tasks are {known}.")

    def _model(self, tensors: WeightMap, architecture: Architecture | None = None) -> MoEModel:
        model = MoEModel.from_architecture(architecture or self._architecture)
        model.load_state_dict(tensors)
        model.tokenizer = self.base.tokenizer
        return model.to(next(self.base.parameters()).dtype)

    def _beginning(self) -> WeightMap:
        """The tensors with which a task begins: the base, and experts that are copies."""
        base = self.base.state_dict()
        tensors = {name: it.clone() for name, it in base.items()}
        first = self.base.moe_config.num_experts or 0
        for name, it in base.items():
            if match := _EXPERT.fullmatch(name):
                number = int(match[2])
                for copy in range(number, self._own, first):
                    tensors[f"{match[1]}{first + copy}{match[3]}"] = it.clone()
            elif ".moe.router." in name and it.dim() and len(it) == first:
                rows = torch.arange(first + self._own) % first
                tensors[name] = it[rows].clone()
        return {**tensors, **dict(self._gates(tensors))}

    def _gates(self, tensors: WeightMap) -> Iterator[tuple[str, Tensor]]:
        """Embeddings of zeros, and the fixed matrices, the same for every task."""
        generator = torch.Generator().manual_seed(0)
        for name in sorted(it for it in tensors if it.endswith(".moe.router.weight")):
            weight, gate = tensors[name], f"{name.removesuffix('weight')}gate."
            experts, hidden = weight.shape
            for part, shape in ((DOWN, (self._width, hidden)), (UP, (experts, self._width))):
                drawn = torch.randn(shape, generator=generator) / shape[1] ** 0.5
                yield f"{gate}{part}", drawn.to(weight)
            yield f"{gate}{EMBEDDING}", torch.zeros(self._width).to(weight)

    def _difference(self, tensors: WeightMap) -> WeightMap:
        """The tensors that the base does not have, or has otherwise."""
        base = self.base.state_dict()
        return {
            name: it.detach().clone()
            for name, it in tensors.items()
            if name not in base or not _same(base[name], it)
        }


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other), other)


def _task_file(number: int) -> str:
    """A file by its number: a name may be any text."""
    return f"task-{number:03d}.safetensors"


def _grown(architecture: Architecture, own: int, width: int | None) -> Architecture:
    """With a task's experts, and the conditioned router or, without a width, the plain one."""
    moe = architecture.moe
    router = moe.router
    if width is not None:
        router = RouterConfig(name=NAME, options={**router.options, "width": width})
    grown = replace(moe, num_experts=(moe.num_experts or 0) + own, router=router)
    return replace(architecture, moe=grown)
