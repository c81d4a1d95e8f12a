"""Which Megatron flag each configuration field is, in both directions.

`to_flags` writes a configuration as Megatron's command line; `split_flags` reads a command line
back into fields, so that a flag given beside a file overrides the field it stands for and every
other flag travels along in `RunConfig.megatron`. The table knows names only: what Megatron makes of
a flag, and which flags exist, is known to `moe_megatron.mcore`.
"""

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moe_megatron.config.run import MegatronValue, RunConfig
from moe_megatron.errors import ConfigError

Values = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlagRule:
    """One field as one flag."""

    field: str
    """Dotted name, such as "moe.top_k"."""
    flag: str
    """Megatron's name, without the leading dashes."""
    write: Callable[[Any], Values | None]
    """The values behind the flag; None leaves the flag out."""
    read: Callable[[Values], Any]
    """The field's value from the values behind the flag."""
    takes_value: bool = True
    """Whether exactly one value stands behind the flag, or none."""


def _text(values: Values) -> str:
    return values[0]


def _whole(values: Values) -> Any:
    # Text that is no number goes on as text, for the field's own message.
    try:
        return int(values[0])
    except ValueError:
        return values[0]


def _one(value: Any) -> Values | None:
    return None if value is None else (str(value),)


def _value(field: str, flag: str, read: Callable[[Values], Any] = _text) -> FlagRule:
    return FlagRule(field=field, flag=flag, write=_one, read=read)


def _number(field: str, flag: str) -> FlagRule:
    return _value(field, flag, _whole)


def _switch(field: str, flag: str, on: Any = True, off: Any = False) -> FlagRule:
    """A flag without a value that stands for `field == on`."""
    return FlagRule(
        field=field, flag=flag, write=lambda v: () if v == on and v != off else None,
        read=lambda _: on, takes_value=False,
    )  # fmt: skip


_ARITHMETIC = (
    ast.Expression, ast.List, ast.Constant, ast.BinOp, ast.Add, ast.Mult, ast.Load
)  # fmt: skip


def _pattern(values: Values) -> Any:
    """A number, or a list that may be written as Megatron allows it, "([0]*1+[1]*3)*2"."""
    text = values[0].strip()
    try:
        tree = ast.parse(text if text[:1] in "([" else f"[{text}]", mode="eval")
        if not all(isinstance(node, _ARITHMETIC) for node in ast.walk(tree)):
            return text
        numbers = eval(compile(tree, "moe-layer-freq", "eval"), {"__builtins__": {}})
    except (SyntaxError, TypeError):
        # Text that is no pattern goes on as text, for the field's own message.
        return text
    if text.isdecimal():
        return numbers[0]
    return tuple(numbers) if isinstance(numbers, list) else numbers


RULES: tuple[FlagRule, ...] = (
    _number("model.num_layers", "num-layers"),
    _number("model.hidden_size", "hidden-size"),
    _number("model.num_attention_heads", "num-attention-heads"),
    _number("model.num_query_groups", "num-query-groups"),
    _number("model.head_dim", "kv-channels"),
    _number("model.ffn_hidden_size", "ffn-hidden-size"),
    _number("model.max_position_embeddings", "max-position-embeddings"),
    _value("model.position_embedding", "position-embedding-type"),
    _number("model.rotary_base", "rotary-base"),
    _value("model.norm", "normalization"),
    _value("model.norm_epsilon", "norm-epsilon"),
    _switch("model.qk_norm", "qk-layernorm"),
    _switch("model.activation", "swiglu", on="swiglu", off="gelu"),
    _switch("model.activation", "squared-relu", on="squared_relu", off="gelu"),
    _switch("model.add_bias", "disable-bias-linear", on=False, off=True),
    _switch("model.tie_embeddings", "untie-embeddings-and-output-weights", on=False, off=True),
    _value("model.init_std", "init-method-std"),
    _value("model.attention_dropout", "attention-dropout"),
    _value("model.hidden_dropout", "hidden-dropout"),
    _number("moe.num_experts", "num-experts"),
    _number("moe.top_k", "moe-router-topk"),
    _number("moe.expert_hidden_size", "moe-ffn-hidden-size"),
    _number("moe.shared_expert_hidden_size", "moe-shared-expert-intermediate-size"),
    FlagRule(
        field="moe.layer_frequency",
        flag="moe-layer-freq",
        write=lambda v: (str(v) if isinstance(v, int) else f"[{','.join(map(str, v))}]",),
        read=_pattern,
    ),
    _value("moe.router_score_function", "moe-router-score-function"),
    _switch("moe.pre_softmax", "moe-router-pre-softmax"),
    _value("moe.router_dtype", "moe-router-dtype"),
    _value("moe.load_balancing", "moe-router-load-balancing-type"),
    _value("moe.aux_loss_coef", "moe-aux-loss-coeff"),
    _value("moe.z_loss_coef", "moe-z-loss-coeff"),
    _value("moe.capacity_factor", "moe-expert-capacity-factor"),
    _switch("moe.pad_to_capacity", "moe-pad-expert-input-to-capacity"),
    _value("moe.drop_policy", "moe-token-drop-policy"),
    _value("moe.input_jitter", "moe-input-jitter-eps"),
    _switch("moe.expert_bias", "moe-router-enable-expert-bias"),
    _value("moe.expert_bias_update_rate", "moe-router-bias-update-rate"),
    _number("moe.num_groups", "moe-router-num-groups"),
    _number("moe.group_top_k", "moe-router-group-topk"),
    _value("moe.top_k_scaling", "moe-router-topk-scaling-factor"),
    _value("moe.token_dispatcher", "moe-token-dispatcher-type"),
    _switch("moe.grouped_gemm", "moe-grouped-gemm"),
    _number("data.sequence_length", "seq-length"),
    _value("data.split", "split"),
    _number("data.num_workers", "num-workers"),
    _number("training.train_steps", "train-iters"),
    _number("training.micro_batch_size", "micro-batch-size"),
    _number("training.global_batch_size", "global-batch-size"),
    _value("training.learning_rate", "lr"),
    _value("training.min_learning_rate", "min-lr"),
    _number("training.warmup_steps", "lr-warmup-iters"),
    _value("training.decay_style", "lr-decay-style"),
    _value("training.weight_decay", "weight-decay"),
    _value("training.adam_beta1", "adam-beta1"),
    _value("training.adam_beta2", "adam-beta2"),
    _value("training.clip_grad", "clip-grad"),
    _number("training.seed", "seed"),
    _number("training.eval_interval", "eval-interval"),
    _number("training.eval_steps", "eval-iters"),
    _number("training.log_interval", "log-interval"),
    FlagRule(
        field="training.recompute",
        flag="recompute-granularity",
        write=lambda v: None if v == "none" else (v,),
        read=_text,
    ),
    _number("parallel.tensor_parallel_size", "tensor-model-parallel-size"),
    _number("parallel.pipeline_parallel_size", "pipeline-model-parallel-size"),
    _number("parallel.virtual_pipeline_stages", "num-virtual-stages-per-pipeline-rank"),
    _number("parallel.expert_parallel_size", "expert-model-parallel-size"),
    _number("parallel.expert_tensor_parallel_size", "expert-tensor-parallel-size"),
    _number("parallel.context_parallel_size", "context-parallel-size"),
    _switch("parallel.sequence_parallel", "sequence-parallel"),
    _switch("parallel.distributed_optimizer", "use-distributed-optimizer"),
    _number("checkpoint.save_interval", "save-interval"),
    _value("checkpoint.load", "load"),
    _switch("checkpoint.async_save", "async-save"),
    _switch("checkpoint.fully_reshardable", "dist-ckpt-optim-fully-reshardable"),
    _switch("checkpoint.save_optimizer", "no-save-optim", on=False, off=True),
)
"""Every field that one flag can say. The rest (paths, precision) is resolved by the engine."""

_BY_FLAG = {rule.flag: rule for rule in RULES}

_PRECISION_FLAGS = {"bf16": "bf16", "fp8-format": "fp8"}


def to_flags(config: RunConfig) -> list[str]:
    """Write the fields of a configuration, and its `megatron` flags, as command line words.

    Raises:
        ConfigError: `megatron` holds a flag that a field stands for.
    """
    words: list[str] = []
    for rule in RULES:
        section, _, name = rule.field.partition(".")
        if section == "moe" and config.moe.num_experts is None:
            continue
        values = rule.write(getattr(getattr(config, section), name))
        if values is not None:
            words += [f"--{rule.flag}", *values]
    for flag, value in config.megatron.items():
        if flag in _BY_FLAG:
            raise ConfigError(
                f"megatron.{flag} is the field {_BY_FLAG[flag].field}; set that one instead."
            )
        if value is not False:
            words += [f"--{flag}", *_words(value)]
    return words


def _words(value: MegatronValue) -> Iterable[str]:
    if value is True or value is None:
        return ()
    return map(str, value) if isinstance(value, tuple) else (str(value),)


def split_flags(words: Sequence[str]) -> dict[str, Any]:
    """Read command line words into overrides for `apply_overrides`.

    Args:
        words: Flags with their values, as in "--num-layers 6 --bf16" or "--num-layers=6".

    Returns:
        Values by dotted name; a flag that no field stands for is named "megatron.<flag>".

    Raises:
        ConfigError: A word stands before any flag, or a flag has too few or too many values.
    """
    overrides: dict[str, Any] = {}
    for flag, values in _grouped(words):
        if flag in _PRECISION_FLAGS:
            overrides.setdefault("training.precision", _PRECISION_FLAGS[flag])
            if flag == "fp8-format":
                overrides["training.precision"] = "fp8"
                overrides["megatron.fp8-format"] = values[0] if values else "hybrid"
            continue
        if flag == "data-path":
            overrides.update(_blend(values))
            continue
        rule = _BY_FLAG.get(flag)
        if rule is None:
            overrides[f"megatron.{flag}"] = _plain(values)
            continue
        _check_number_of_values(rule, values)
        overrides[rule.field] = rule.read(values)
    return overrides


def _check_number_of_values(rule: FlagRule, values: Values) -> None:
    if rule.takes_value and not values:
        raise ConfigError(
            f"--{rule.flag} needs a value, as in '--{rule.flag} VALUE'; none was given."
        )
    number, word = (1, "one value") if rule.takes_value else (0, "no value")
    if len(values) > number:
        raise ConfigError(
            f"--{rule.flag} takes {word}, and '{' '.join(values[number:])}' was given besides; "
            f"leave it out, or set {rule.field} in the configuration."
        )


def _blend(values: Values) -> dict[str, Any]:
    """`--data-path` takes paths, or weights and paths by turns."""
    weights = values[::2]
    if len(values) > 1 and len(values) % 2 == 0 and all(map(_is_number, weights)):
        return {"data.paths": values[1::2], "data.weights": weights}
    return {"data.paths": values, "data.weights": None}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(values: Values) -> MegatronValue:
    if not values:
        return True
    return values[0] if len(values) == 1 else values


def _grouped(words: Sequence[str]) -> list[tuple[str, Values]]:
    groups: list[tuple[str, Values]] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            groups.append((flag, (value,) if equals else ()))
        elif groups:
            flag, values = groups[-1]
            groups[-1] = (flag, (*values, word))
        else:
            raise ConfigError(
                f"'{word}' is not a flag; give flags as in '--num-layers 6', after the "
                "configuration."
            )
    return groups
