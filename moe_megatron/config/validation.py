"""Rules that involve two sections of a configuration.

Each function takes the sections it compares and raises with a remedy; `RunConfig.validate` calls
them all. They mirror what Megatron asserts after it has started on every process, so that a
mistake shows on a laptop, before the job is queued. Rules that need only one section are in that
section's class.
"""

import math
from collections.abc import Mapping

from moe_megatron.config import checks
from moe_megatron.config.adapter import AdapterConfig
from moe_megatron.config.checkpoint import CheckpointConfig
from moe_megatron.config.data import BASE, DataConfig
from moe_megatron.config.evaluation import EvaluationConfig
from moe_megatron.config.finetune import RATES, FinetuneConfig
from moe_megatron.config.model import ModelConfig
from moe_megatron.config.moe import BALANCES_WITHOUT_LOSS, MoEConfig
from moe_megatron.config.parallel import ParallelConfig
from moe_megatron.config.recovery import RecoveryConfig
from moe_megatron.config.selector import Selector
from moe_megatron.config.training import TrainingConfig
from moe_megatron.errors import ConfigError, TopologyError

# Megatron flags that distribute layers unevenly, by rules of their own.
UNEVEN_PIPELINE_FLAGS = (
    "pipeline-model-parallel-layout",
    "decoder-first-pipeline-num-layers",
    "decoder-last-pipeline-num-layers",
    "account-for-embedding-in-pipeline-split",
    "account-for-loss-in-pipeline-split",
)
_WSD_FLAGS = ("lr-wsd-decay-iters", "lr-wsd-decay-samples")
_MICROBATCH_GROUP_FLAG = "microbatch-group-size-per-virtual-pipeline-stage"


def check_layers(model: ModelConfig, moe: MoEConfig) -> None:
    """A `layer_frequency` list must name every layer."""
    pattern = moe.layer_frequency
    if isinstance(pattern, tuple) and len(pattern) != model.num_layers:
        raise ConfigError(
            f"moe.layer_frequency has {len(pattern)} entries for model.num_layers "
            f"({model.num_layers}); give one 1 or 0 for each layer."
        )


def check_sequence(model: ModelConfig, data: DataConfig, parallel: ParallelConfig) -> None:
    """A sequence must fit the model, and divide among the processes that share it."""
    length, limit = data.sequence_length, model.max_position_embeddings
    if limit is not None and limit < length:
        raise ConfigError(
            f"data.sequence_length ({length}) must not exceed model.max_position_embeddings "
            f"({limit}); shorten the sequences, or set max_position_embeddings to null."
        )
    context = parallel.context_parallel_size
    # Each process takes one piece from the front and one from the back: causal attention is
    # cheaper at the front, so this gives every process the same work.
    if context > 1 and length % (2 * context):
        raise TopologyError(
            f"data.sequence_length ({length}) must be a multiple of 2 x context_parallel_size "
            f"({context}); try {_nearest_multiples(length, 2 * context)}."
        )
    tensor = parallel.tensor_parallel_size
    if parallel.choose_sequence_parallel()[0] and length % (context * tensor):
        raise TopologyError(
            f"data.sequence_length ({length}) must be a multiple of context_parallel_size "
            f"({context}) x tensor_parallel_size ({tensor}) with sequence parallelism; "
            f"try {_nearest_multiples(length, context * tensor)}."
        )


def check_prediction(
    model: ModelConfig, parallel: ParallelConfig, megatron: Mapping[str, object]
) -> None:
    """Layers for multi-token prediction rule out some positions and ways to build them."""
    layers = model.num_prediction_layers
    if not layers:
        return
    scaling = model.rope_scaling
    if scaling is not None and scaling.kind == "yarn" and model.latent_attention is None:
        raise ConfigError(
            f"model.num_prediction_layers ({layers}) does not work with model.rope_scaling.kind "
            "'yarn', for which Megatron has no multi-token prediction outside of latent attention; "
            "set num_prediction_layers to 0, or another kind of scaling."
        )
    stages = parallel.pipeline_parallel_size
    if model.position_embedding == "learned_absolute" and stages > 1:
        raise ConfigError(
            f"model.num_prediction_layers ({layers}) with learned positions cannot be split by "
            f"pipeline_parallel_size ({stages}): Megatron would train a table of positions on two "
            "stages, each its own; set pipeline_parallel_size to 1, or position_embedding to rope."
        )
    for flag, reason in _NO_PREDICTION.items():
        if flag in megatron:
            raise ConfigError(
                f"--{flag} {reason}; leave it out, or set model.num_prediction_layers ({layers}) "
                "to 0."
            )


_NO_PREDICTION = {
    "mtp-use-repeated-layer": "runs one layer for all predictions, whose routing could not be told "
    "apart",
    "spec": "describes the decoder alone, and Megatron builds layers for multi-token prediction "
    "from a spec of its own",
}


def check_widths(model: ModelConfig, moe: MoEConfig, parallel: ParallelConfig) -> None:
    """Heads and inner widths must divide among the processes that share them."""
    tensor = parallel.tensor_parallel_size
    _check_divides("tensor_parallel_size", tensor, "num_attention_heads", model.num_attention_heads)
    query_groups = model.key_value_heads
    # With fewer query groups than processes Megatron copies a group to several of them.
    if query_groups % tensor and tensor % query_groups:
        raise TopologyError(
            f"num_query_groups ({query_groups}) must be a multiple or a divisor of "
            f"tensor_parallel_size ({tensor}); "
            f"try tensor_parallel_size {checks.join_words(checks.divisors(query_groups))}."
        )
    moe_layers = len(moe.layer_numbers(model.num_layers))
    if moe_layers < model.num_layers:
        _check_divides("tensor_parallel_size", tensor, "ffn_hidden_size", model.dense_ffn_size)
    if not moe_layers:
        return
    width = moe.expert_hidden_size or model.dense_ffn_size
    experts = parallel.expert_tensor_size
    _check_divides("expert_tensor_parallel_size", experts, "expert_hidden_size", width)
    if moe.shared_expert_hidden_size is not None:
        shared = moe.shared_expert_hidden_size
        _check_divides("tensor_parallel_size", tensor, "shared_expert_hidden_size", shared)


def check_moe_splitting(model: ModelConfig, moe: MoEConfig, parallel: ParallelConfig) -> None:
    """Expert options that rule out some parallel sizes."""
    if moe.num_experts is None:
        return
    tensor = parallel.tensor_parallel_size
    if tensor > 1 and not parallel.choose_sequence_parallel()[0]:
        raise TopologyError(
            f"MoE layers with tensor_parallel_size ({tensor}) need sequence parallelism, or every "
            "process would route the same tokens; set parallel.sequence_parallel to true or null."
        )
    if not moe.expert.is_model_mlp and parallel.expert_tensor_size > 1:
        raise TopologyError(
            f"experts of the kind '{moe.expert.name}' (moe.expert) are whole modules, which cannot "
            f"be split by expert_tensor_parallel_size ({parallel.expert_tensor_size}); set "
            "parallel.expert_tensor_parallel_size to 1: tokens are then spread over the processes."
        )
    if model.add_bias and parallel.expert_tensor_size > 1:
        raise TopologyError(
            f"experts with a bias cannot be split by expert_tensor_parallel_size "
            f"({parallel.expert_tensor_size}); set it to 1, or model.add_bias to false."
        )


def check_expert_failure(moe: MoEConfig, recovery: RecoveryConfig) -> None:
    """Balancing without a loss assigns tokens by itself, to masked experts, too."""
    if recovery.expert_failure == "mask" and moe.load_balancing in BALANCES_WITHOUT_LOSS:
        raise ConfigError(
            f"recovery.expert_failure 'mask' does not work with moe.load_balancing "
            f"'{moe.load_balancing}', which cannot leave experts out; use 'stop', or "
            "balance with a loss."
        )


def check_finetune(
    finetune: FinetuneConfig,
    model: ModelConfig,
    moe: MoEConfig,
    parallel: ParallelConfig,
    megatron: Mapping[str, object],
) -> None:
    """Selectors must name what the model has, and each rate must have something to apply to."""
    for field, selector in finetune.selectors():
        if problem := _missing(selector, model, moe):
            raise ConfigError(f"{field} '{selector}' does not fit this model: {problem}.")
    if finetune.reselect and not parallel.distributed_optimizer:
        raise ConfigError(
            "finetune.reselect needs parallel.distributed_optimizer, whose states are loaded one "
            "by one."
        )
    if "all" in finetune.freeze:
        raise ConfigError(
            "finetune.freeze 'all' leaves nothing to train; name what to train in finetune.train."
        )
    for role, field in RATES.items():
        given = getattr(finetune, field)
        if given is not None and role in finetune.freeze:
            raise ConfigError(
                f"finetune.{field} ({given}) has no effect, because finetune.freeze names {role}; "
                "leave one of them out."
            )
    for flag in _OTHER_RATES & megatron.keys():
        if any(getattr(finetune, field) is not None for field in RATES.values()):
            raise ConfigError(
                f"--{flag} gives learning rates of its own, which contradict those of finetune; "
                "leave one of them out."
            )


def check_adapters(adapter: AdapterConfig, model: ModelConfig, moe: MoEConfig) -> None:
    """Selectors of adapters must name what the model has."""
    for field, selector in adapter.selectors():
        if problem := _missing(selector, model, moe):
            raise ConfigError(f"{field} '{selector}' does not fit this model: {problem}.")


_OTHER_RATES = frozenset({"decoupled-lr", "use-mup"})


def _missing(selector: Selector, model: ModelConfig, moe: MoEConfig) -> str:
    """What a selector names and a model lacks; "" if it has all of it."""
    layers = model.num_layers + model.num_prediction_layers
    moe_layers = (*moe.layer_numbers(model.num_layers), *range(model.num_layers + 1, layers + 1))
    if not moe.num_experts:
        moe_layers = ()
    if selector.layers and selector.layers[-1] > layers:
        return f"it has {layers} layers, which count from 1"
    if selector.what == "shared_experts" and not moe.shared_expert_hidden_size:
        return "it has no shared experts"
    if selector.what == "output" and model.tie_embeddings:
        return "its output layer is the embedding; write embeddings"
    if selector.what not in ("experts", "router", "shared_experts"):
        return ""
    if not moe_layers:
        return "it is a dense model"
    if plain := sorted({*selector.layers} - {*moe_layers}):
        return f"layer {plain[0]} is not an MoE layer"
    if selector.experts and selector.experts[-1] >= (moe.num_experts or 0):
        return f"its layers have {moe.num_experts} experts, which count from 0"
    return ""


def check_quantiles(moe: MoEConfig, training: TrainingConfig, data: DataConfig) -> None:
    """Megatron's quantile balancing gives every expert equally many tokens of a micro-batch."""
    if moe.num_experts is None or moe.load_balancing != "quantile_balancing":
        return
    tokens = training.micro_batch_size * data.sequence_length
    if tokens * moe.top_k % moe.num_experts:
        raise ConfigError(
            f"moe.load_balancing 'quantile_balancing' needs training.micro_batch_size "
            f"({training.micro_batch_size}) x data.sequence_length ({data.sequence_length}) x "
            f"moe.top_k ({moe.top_k}) to be a multiple of moe.num_experts ({moe.num_experts}); "
            "change one of them, or use the router 'quantile', which does not."
        )


_OWN_FLAGS = {
    "enable-ft-package": "recovery.restart: ft_launcher gives it to Megatron",
    "inprocess-restart": "use recovery.restart: in_process, which knows this loop",
    "calc-ft-timeouts": "a short run would leave timeouts in ft_state.json that end a long one; "
    "set recovery.hang_seconds and recovery.setup_seconds",
}


def check_restart(
    recovery: RecoveryConfig, checkpoint: CheckpointConfig, megatron: Mapping[str, object]
) -> None:
    """A way to start ranks again needs something to go on from, and is named in one place."""
    for flag, remedy in _OWN_FLAGS.items():
        if flag in megatron:
            raise ConfigError(f"--{flag} cannot be given: {remedy}.")
    if recovery.restart != "elastic" and checkpoint.save_interval is None:
        raise ConfigError(
            f"recovery.restart '{recovery.restart}' needs checkpoints to go on from; set "
            "checkpoint.save_interval, or recovery.restart to elastic."
        )


def check_schedule(
    training: TrainingConfig, data: DataConfig, megatron: Mapping[str, object]
) -> None:
    """Evaluation needs a validation share, and a WSD schedule needs the length of its decay."""
    if training.eval_interval is not None and data.split_shares[1] == 0:
        raise ConfigError(
            f"training.eval_interval ({training.eval_interval}) needs a validation share in "
            f"data.split, which is '{data.split}'; use for example '95,5,0', or set eval_interval "
            "to null."
        )
    if training.decay_style == "WSD" and not any(flag in megatron for flag in _WSD_FLAGS):
        raise ConfigError(
            "training.decay_style 'WSD' needs the length of its decay; set "
            "megatron.lr-wsd-decay-iters to a number of steps."
        )


def check_batch(
    training: TrainingConfig,
    parallel: ParallelConfig,
    world_size: int,
    megatron: Mapping[str, object],
) -> None:
    """A global batch must be a whole number of micro-batches on every copy of the model."""
    copies = parallel.data_parallel_size(world_size)
    micro, batch = training.micro_batch_size, training.global_batch_size
    if batch % (micro * copies):
        remedy = f"try global_batch_size {_nearest_multiples(batch, micro * copies)}"
        if batch % copies == 0:
            fitting = checks.join_words(checks.divisors(batch // copies))
            remedy += f", or micro_batch_size {fitting}"
        raise TopologyError(
            f"global_batch_size ({batch}) must be a multiple of micro_batch_size ({micro}) x data "
            f"parallel size ({copies}); {remedy}."
        )
    rounds, pipeline = batch // (micro * copies), parallel.pipeline_parallel_size
    interleaved = parallel.stages_per_process > 1 and _MICROBATCH_GROUP_FLAG not in megatron
    if interleaved and rounds % pipeline:
        raise TopologyError(
            f"virtual_pipeline_stages ({parallel.stages_per_process}) need the number of "
            f"micro-batches ({rounds}) to be a multiple of pipeline_parallel_size ({pipeline}); "
            f"try global_batch_size {_nearest_multiples(batch, micro * copies * pipeline)}."
        )


def _check_divides(size_name: str, size: int, width_name: str, width: int) -> None:
    if width % size:
        raise TopologyError(
            f"{size_name} ({size}) must divide {width_name} ({width}); "
            f"try {checks.join_words([d for d in checks.divisors(width) if d <= 64])}."
        )


def _nearest_multiples(number: int, step: int) -> str:
    below = number // step * step
    return checks.join_words([count for count in (below, below + step) if count])


def check_evaluation(
    evaluation: EvaluationConfig, data: DataConfig, training: TrainingConfig
) -> None:
    """Check that what a run is judged by is evaluated."""
    if evaluation.max_forgetting is not None and not evaluation.base:
        raise ConfigError(
            "evaluation.max_forgetting needs data of the base domain; give it in evaluation.base."
        )
    if evaluation.on and training.eval_interval is None:
        raise ConfigError(
            "the fields of evaluation need evaluations, which training.eval_interval (null) turns "
            "off; set it to a number of steps."
        )
    task = evaluation.metric.task
    if task is None or (task == BASE and evaluation.base):
        return
    try:
        data.task_number(task)
    except ConfigError as error:
        raise ConfigError(f"evaluation.best ({evaluation.best}): {error}") from None


def check_retention(checkpoint: CheckpointConfig, training: TrainingConfig) -> None:
    """Check that the best checkpoints can be told, if they are to be kept."""
    interval, evaluated = checkpoint.save_interval, training.eval_interval
    if checkpoint.keep_best is None or interval is None:
        return
    if evaluated is None or math.lcm(interval, evaluated) > training.train_steps:
        raise ConfigError(
            f"checkpoint.keep_best ({checkpoint.keep_best}) needs evaluations at steps that are "
            f"saved, but checkpoint.save_interval is {interval} and training.eval_interval is "
            f"{evaluated}; make one a multiple of the other."
        )
