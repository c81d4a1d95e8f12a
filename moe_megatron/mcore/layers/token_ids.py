"""The token ids of the micro-batch that is computed now, and their domains and tasks, for routers.

The domain of a token is the source of its sample, of which Megatron's blend tells; its task is what
`loop/task_dataset.py` has written beside the sample. Megatron gives layers hidden states alone. The
forward step leaves all of them here before it calls the model; a layer finds those of its own rows.
Layers for multi-token prediction are given later tokens of the sequence, one more with each layer,
and find the ids of those.

Stages that compute a micro-batch again after they have begun another one would find the wrong ids:
`check_token_ids` refuses such runs.
"""

import torch
from megatron.core import mpu
from megatron.core.transformer.multi_token_prediction import roll_tensor
from torch import Tensor

from moe_megatron.config import RunConfig
from moe_megatron.errors import ConfigError
from moe_megatron.routing import bind

_current: Tensor | None = None
_domains: Tensor | None = None
_tasks: Tensor | None = None


def show_token_ids(
    token_ids: Tensor | None, domains: Tensor | None = None, tasks: Tensor | None = None
) -> None:
    """Leave the ids of a micro-batch, as far as this context rank has them.

    Args:
        token_ids: [batch, sequence].
        domains: [batch], the source of each sample, or of each token as `token_ids`; None: there
            is but one.
        tasks: As `domains`, the number of the task; None: there are no tasks.
    """
    global _current, _domains, _tasks
    _current, _domains, _tasks = token_ids, domains, tasks


def token_ids_here(*, sequence_parallel: bool, ahead: int = 0) -> Tensor:
    """The ids of the rows of a layer, int64 [T]: sequence first, as Megatron has them.

    Args:
        sequence_parallel: Whether the ranks of a tensor parallel group share a sequence.
        ahead: How many tokens later than its position a row stands for; 0 stands at the end.
    """
    assert _current is not None, "every stage reads samples for a router that looks at token ids"
    ids = _current
    for _ in range(ahead):  # as the layers themselves do it
        group = mpu.get_context_parallel_group()
        ids, _sum = roll_tensor(ids, shifts=-1, dims=-1, cp_group=group)
    return _rows(ids, sequence_parallel=sequence_parallel)


def domain_ids_here(*, sequence_parallel: bool) -> Tensor:
    """The domains of the rows of a layer, int64 [T]; -1 where the data has but one source.

    Args:
        sequence_parallel: Whether the ranks of a tensor parallel group share a sequence.
    """
    return _of_samples(_domains, sequence_parallel=sequence_parallel)


def task_ids_here(*, sequence_parallel: bool) -> Tensor:
    """The tasks of the rows of a layer, int64 [T]; -1 where the data has none.

    Args:
        sequence_parallel: Whether the ranks of a tensor parallel group share a sequence.
    """
    return _of_samples(_tasks, sequence_parallel=sequence_parallel)


def _of_samples(numbers: Tensor | None, *, sequence_parallel: bool) -> Tensor:
    """What is known of samples, for the rows of a layer."""
    assert _current is not None, "every stage reads samples where layers look at them"
    of_tokens = torch.full_like(_current, -1)
    if numbers is not None:
        of_rows = numbers if numbers.dim() == 2 else numbers.unsqueeze(1)
        of_tokens = of_rows.to(_current).expand_as(_current)
    return _rows(of_tokens, sequence_parallel=sequence_parallel)


def _rows(ids: Tensor, *, sequence_parallel: bool) -> Tensor:
    """[batch, sequence] to the rows of this rank, sequence first."""
    rows = ids.t()
    if sequence_parallel:
        size, rank = (
            mpu.get_tensor_model_parallel_world_size(),
            mpu.get_tensor_model_parallel_rank(),
        )
        rows = torch.chunk(rows, size)[rank]
    return rows.reshape(-1)


def uses_token_ids(config: RunConfig) -> bool:
    """Whether the router of a run looks at token ids, or at their domains or tasks."""
    if config.moe.num_experts is None:
        return False
    route = bind(config.moe)
    return any(map(route.uses, ("token_ids", "domain_ids", "task_ids")))


def tasks_counted(config: RunConfig) -> tuple[str, ...]:
    """The tasks whose tokens are counted by themselves: all, if layers find the right ids.

    A pipeline stage that computes a micro-batch again would count it for the task of a later one.
    """
    again = config.training.recompute != "none" and config.parallel.pipeline_parallel_size > 1
    measured = config.telemetry.enabled and config.moe.num_experts is not None
    return (config.data.tasks or ()) if measured and not again else ()


def samples_tokens(config: RunConfig) -> bool:
    """Whether samples record which tokens experts get.

    A micro-batch that is computed again is no trouble: a sample counts the first time.
    """
    telemetry = config.telemetry
    asked = telemetry.sample_tokens and telemetry.sample_interval > 0
    return telemetry.enabled and asked and config.moe.num_experts is not None


def _check_domains(config: RunConfig, data_paths: tuple[str, ...]) -> None:
    """The data must have a source for each domain of the router."""
    if not data_paths or not bind(config.moe).uses("domain_ids"):
        return
    sources, domains = max(1, len(data_paths) // 2), config.moe.router.option("domains")
    if sources < 2 or domains not in (None, sources):
        raise ConfigError(
            f"the router '{config.moe.router.name}' goes by the sources of the data, of which "
            f"data.paths gives {sources}, and moe.router.domains is {domains}; give one source "
            "for each domain, and as many domains."
        )


def check_token_ids(config: RunConfig, data_paths: tuple[str, ...] = ()) -> None:
    """Check that layers find the right ids, and the domains that the router knows.

    Args:
        config: The run.
        data_paths: Weights and prefixes of the sources, by turns; none: mock data.

    Raises:
        ConfigError: They would not.
    """
    if not uses_token_ids(config):
        return
    _check_domains(config, data_paths)
    name = config.moe.router.name
    if config.training.recompute != "none" and config.parallel.pipeline_parallel_size > 1:
        raise ConfigError(
            f"the router '{name}' looks at token ids, which are gone when a pipeline stage "
            "computes a micro-batch again; set training.recompute to none, or "
            "pipeline_parallel_size to 1."
        )
