"""How much memory a run takes, told from its configuration before anything is started.

What is stored for each parameter is counted exactly; a process and activations are estimates that
were fitted to measured runs on CPUs (`benchmarks/results`), within a fifth of them. Saving and
resuming add nothing to training, because optimizer states are saved and loaded where they are; in
the background a fork writes what it found, and keeps at most a copy of all that training changes
meanwhile. What is frozen has weights alone. It knows no machine.
"""

from dataclasses import dataclass
from math import prod

from moe_megatron.config import RunConfig
from moe_megatron.config.adapter import AdapterConfig
from moe_megatron.config.parameter_roles import ParameterPlace
from moe_megatron.families.links import Link
from moe_megatron.families.matrix_places import place_of
from moe_megatron.families.moe_model import model_links

_PROCESS = 600e6
"""A process on a CPU with torch and Megatron loaded, before it has a model."""
_TENSOR_PARALLEL = 450e6
"""What a process of tensor parallelism takes beyond the rest; measured at one size."""
_GRADIENT = 4
_MOMENTS = 8
_MASTER = 4
_LOGIT = 8
"""Bytes of each: gradients are summed, and moments and master weights kept, in fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMemory:
    """Bytes of all processes of one machine together."""

    training: int
    saving: int
    """While a checkpoint is written; as training where the run writes none."""
    resuming: int
    """Until a run that loads a checkpoint makes its first step."""
    stored: int
    """The part of `training` that is weights, gradients and optimizer states."""
    checkpoint: int
    """Size of a whole checkpoint."""

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.training, self.saving, self.resuming)


def run_memory(
    config: RunConfig, *, precision: str, world_size: int, processes: int | None = None
) -> RunMemory:
    """Estimate the memory that a run takes on each machine.

    Args:
        config: The run; it fits the processes.
        precision: "fp32", "bf16" or "fp8": what "auto" was resolved to.
        world_size: Number of processes of the run.
        processes: Number of those on one machine; None: all.
    """
    here = world_size if processes is None else processes
    background = config.checkpoint.async_save and config.checkpoint.save_interval is not None
    parameters = _parameters(config)
    shares = _shares(config, parameters, world_size)
    stored = here * _stored(config, precision, shares)
    changing = stored + here * _passing(config, precision, shares)
    fixed = _PROCESS + (_TENSOR_PARALLEL if config.parallel.tensor_parallel_size > 1 else 0)
    training = changing + here * fixed
    return RunMemory(
        training=round(training),
        saving=round(training + changing if background else training),
        resuming=round(training),
        stored=round(stored),
        checkpoint=round(_checkpoint(config, precision, parameters)),
    )


@dataclass(slots=True)
class _Parameters:
    """How many parameters there are, outside of experts or in them."""

    all: float = 0
    """With those of adapters."""
    trained: float = 0

    def add(self, number: int, *, trained: bool) -> None:
        self.all += number
        self.trained += number if trained else 0

    def __truediv__(self, parts: int) -> "_Parameters":
        return _Parameters(self.all / parts, self.trained / parts)


type _Parts = tuple[_Parameters, _Parameters]
type _Shares = tuple[tuple[_Parameters, int], tuple[_Parameters, int]]


def _parameters(config: RunConfig) -> _Parts:
    """Parameters outside of experts, and in them."""
    dense, experts = _Parameters(), _Parameters()
    for link in model_links(config.architecture):
        layer = None if link.layer is None else link.layer + 1
        place = ParameterPlace(place_of(link), layer=layer, expert=link.expert)
        found = dense if link.expert is None else experts
        trained = config.finetune.trains(place, adapted=config.adapter.on)
        found.add(prod(link.shape), trained=trained)
        found.add(_of_adapter(config.adapter, place, link), trained=True)
    hidden = config.model.hidden_size
    # Three norms and a projection around each layer for multi-token prediction.
    around = config.model.num_prediction_layers * (3 * hidden + 2 * hidden**2)
    dense.add(around, trained=not config.finetune.freezes and not config.adapter.on)
    return dense, experts


def _of_adapter(adapter: AdapterConfig, place: ParameterPlace, link: Link) -> int:
    """Parameters of the adapter of a matrix, as if none were shared among experts."""
    rank = adapter.rank_of(place) if len(link.shape) == 2 else None
    return 0 if rank is None else rank * sum(link.shape)


def _weight(precision: str) -> int:
    return 4 if precision == "fp32" else 2


def _shares(config: RunConfig, parameters: _Parts, world_size: int) -> _Shares:
    """Parameters of a process, on average over stages, and how many processes hold the same.

    For those outside of experts, and in them.
    """
    parallel, (dense, experts) = config.parallel, parameters
    cut = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    expert_cut = (
        parallel.expert_tensor_size
        * parallel.expert_parallel_size
        * parallel.pipeline_parallel_size
    )
    return (dense / cut, world_size // cut), (experts / expert_cut, world_size // expert_cut)


def _stored(config: RunConfig, precision: str, shares: _Shares) -> float:
    """Weights, gradients and optimizer states of a process."""
    weight = _weight(precision)
    states = _MOMENTS + (_MASTER if weight < _MASTER else 0)
    sharded = config.parallel.distributed_optimizer
    return sum(
        parameters.all * weight
        + parameters.trained * (_GRADIENT + states / (replicas if sharded else 1))
        for parameters, replicas in shares
    )


def _passing(config: RunConfig, precision: str, shares: _Shares) -> float:
    """What a process needs for a step: activations, logits, and gradients on their way."""
    parallel, model, moe = config.parallel, config.model, config.moe
    stages, weight = parallel.pipeline_parallel_size, _weight(precision)
    sharing = parallel.context_parallel_size * parallel.tensor_parallel_size
    tokens = config.training.micro_batch_size * config.data.sequence_length / sharing
    hidden, architecture = model.hidden_size, config.architecture
    dense = 17 * hidden + 4 * model.dense_ffn_size
    routed = 17 * hidden + moe.top_k * 4 * (architecture.expert_hidden_size + hidden)
    numbers = range(1, model.num_layers + model.num_prediction_layers + 1)
    layers = [routed if n in architecture.routed_layers else dense for n in numbers]
    if config.training.recompute == "full":
        kept = len(layers) * 2 * hidden / stages + max(layers)
    else:
        kept = sum(layers) / stages
    in_flight = (stages + 1) / 2  # micro-batches, on average over stages
    exchanged = sum(it.trained for it, replicas in shares if replicas > 1) * _GRADIENT
    predictions = 1 + model.num_prediction_layers
    logits = predictions * _LOGIT * architecture.vocab_size / stages
    return tokens * (weight * kept * in_flight + logits) + exchanged


def _checkpoint(config: RunConfig, precision: str, parameters: _Parts) -> float:
    states = _MOMENTS + _MASTER if config.checkpoint.save_optimizer else 0
    weight = _weight(precision)
    return sum(it.all * weight + it.trained * states for it in parameters)
