"""Arguments of a training call and `overrides`: nothing that a person gives is dropped."""

import re
from typing import Any, get_args

import pytest

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.config.fields import settings_of
from moe_megatron.config.finetune import RATES
from moe_megatron.config.resume import flat
from moe_megatron.config.run import SECTIONS
from moe_megatron.errors import ConfigError, TopologyError
from moe_megatron.training.options import TrainOptions, check_overrides, configure

PLAIN: dict[str, Any] = {
    "batch_size": 8,
    "learning_rate": 1e-3,
    "num_epochs": 1,
    "max_steps": None,
    "sequence_length": 64,
    "gradient_accumulation_steps": 1,
    "warmup_steps": None,
    "weight_decay": None,
    "eval_interval": None,
    "expert_dropout": None,
    "load_balancing_loss_coef": None,
    "router_z_loss_coef": None,
}
BASE = apply_overrides(RunConfig(), {"moe.num_experts": 4})


def options(**given: Any) -> TrainOptions:
    return TrainOptions(**{**PLAIN, **given})


def configured(
    overrides: dict[str, Any] | None = None,
    evaluates: bool = True,
    world_size: int = 1,
    **given: Any,
) -> RunConfig:
    return configure(
        BASE,
        options(**given),
        check_overrides(overrides or {}),
        steps=40,
        evaluates=evaluates,
        world_size=world_size,
    )


VALUES: dict[str, Any] = {
    "moe.load_balancing": "seq_aux_loss",
    "training.micro_batch_size": 1,
    "training.min_learning_rate": 5e-4,
    "training.eval_interval": 7,
    "training.warmup_steps": 7,
    "parallel.expert_tensor_parallel_size": 2,
    "moe.token_dispatcher": "allgather",
    "evaluation.best": "accuracy",
    "finetune.train": ("router",),
    "finetune.freeze": ("router",),
    **{f"finetune.{field}": "0.1x" for field in RATES.values()},
}
PAIRS: dict[str, dict[str, Any]] = {
    "telemetry.metrics_tls_certificate": {
        "telemetry.metrics_tls_certificate": "a.pem",
        "telemetry.metrics_tls_key": "b.pem",
    },
    "moe.pad_to_capacity": {"moe.pad_to_capacity": True, "moe.capacity_factor": 1.5},
    "parallel.virtual_pipeline_stages": {
        "parallel.virtual_pipeline_stages": 2,
        "parallel.pipeline_parallel_size": 2,
    },
}
PAIRS["telemetry.metrics_tls_key"] = PAIRS["telemetry.metrics_tls_certificate"]


def another(name: str) -> dict[str, Any]:
    """Overrides that give a field a value that is neither its default nor ours."""
    if name in PAIRS:
        return PAIRS[name]
    if name in VALUES:
        return {name: VALUES[name]}
    if name == "megatron":
        return {"megatron.manual-gc": True}
    if name == "run_dir":
        return {name: "runs/elsewhere"}
    section, _, path = name.partition(".")
    annotation = next(
        it.annotation for it in settings_of(SECTIONS[section]) if ".".join(it.path) == path
    )
    parts = get_args(annotation) or (annotation,)
    kinds = [word for part in parts for word in get_args(part) or (part,)]
    default = flat(BASE)[name]
    if bool in kinds:
        return {name: not default}
    if words := [kind for kind in kinds if isinstance(kind, str) and kind != default]:
        return {name: words[0]}
    if int in kinds:
        return {name: 2 * (default or 3)}
    if float in kinds:
        return {name: 0.25}
    return {name: "something"}


@pytest.mark.parametrize("name", [name for name in flat(RunConfig()) if name != "preset"])
def test_every_field_in_overrides_wins_or_is_refused_by_name(name: str) -> None:
    if name.startswith(("model.", "moe.")) and name.count(".") > 1:
        given = {name: 1}  # a part of the model's shape
    else:
        given = another(name)
    splits = name.startswith("parallel.") and name.endswith(("_size", "_stages"))
    try:
        config = configured(given, world_size=2 if splits else 1)
    except ConfigError as error:
        assert str(error).startswith(f"overrides cannot set {name}, which is decided by ")  # noqa: PT017
        assert "; leave it out of overrides" in str(error)  # noqa: PT017
        return
    found = flat(config)
    if name == "megatron":
        assert config.megatron == {"manual-gc": True}
        return
    assert given[name] != flat(BASE)[name]
    assert found[name] == given[name]


def test_fields_that_arguments_set_are_refused_with_that_argument() -> None:
    refused = {
        "training.train_steps": r"num_epochs and max_steps of train\(...\)",
        "training.global_batch_size": "batch_size and gradient_accumulation_steps",
        "training.learning_rate": r"learning_rate of train\(...\)",
        "data.sequence_length": r"sequence_length of train\(...\)",
        "data.paths": r"train_dataset of train\(...\)",
        "data.split": r"eval_dataset of train\(...\)",
        "data.tokenizer": r"tokenizer of MoETrainer\(...\)",
        "data.vocab_size": r"vocab_size of MoEModel\(...\)",
        "model.hidden_size": r"hidden_size of MoEModel\(...\)",
        "model.init_std": r"init_std of MoEModel\(...\), which has drawn",
        "moe.top_k": r"experts_per_token of MoEModel\(...\)",
        "moe.router.name": r"router of MoEModel\(...\)",
        "model.latent_attention.kv_lora_rank": r"latent_attention of MoEModel\(...\)",
        "recovery.restart": "moe-megatron train --set recovery.restart=...",
        "data.cache_dir": "the environment variable MOE_MEGATRON_CACHE",
    }
    for name, setter in refused.items():
        with pytest.raises(ConfigError, match=f"overrides cannot set {name}, .* by .*{setter}"):
            check_overrides({name: 1})


def test_nested_overrides_are_the_dotted_ones() -> None:
    nested = {"training": {"weight_decay": 0.3, "seed": 7}, "megatron": {"manual-gc": True}}
    dotted = {
        "training.weight_decay": 0.3,
        "training.seed": 7,
        "megatron.manual-gc": True,
    }
    assert check_overrides(nested) == dotted
    assert configured(nested) == configured(dotted)
    with pytest.raises(ConfigError, match=r"overrides cannot set training\.train_steps"):
        check_overrides({"training": {"train_steps": 5}})


@pytest.mark.parametrize(
    ("field", "argument", "value"),
    [
        ("training.warmup_steps", "warmup_steps", 3),
        ("training.weight_decay", "weight_decay", 0.2),
        ("training.eval_interval", "eval_interval", 5),
        ("moe.expert_dropout", "expert_dropout", 0.1),
        ("moe.aux_loss_coef", "load_balancing_loss_coef", 0.05),
        ("moe.z_loss_coef", "router_z_loss_coef", 0.002),
    ],
)
def test_an_argument_sets_its_field_and_is_not_given_twice(
    field: str, argument: str, value: float
) -> None:
    assert flat(configured(**{argument: value}))[field] == value
    with pytest.raises(
        ConfigError, match=f"{field} is given twice, by overrides and by {argument}"
    ):
        configured({field: value}, **{argument: value})


def test_accumulated_batches_make_one_step() -> None:
    config = configured(batch_size=6, gradient_accumulation_steps=4)
    assert config.training.global_batch_size == 24
    assert config.training.micro_batch_size == 2
    assert options(batch_size=6, gradient_accumulation_steps=4).steps(64 * 240) == 10
    assert options(num_epochs=2.5).steps(64 * 80) == 25
    assert options(num_epochs=2.5, max_steps=4).steps(64 * 80) == 4
    assert options().steps(3) == 1


def test_evaluation_without_text_for_it_is_refused() -> None:
    for given in ({"eval_interval": 5}, {"overrides": {"training.eval_interval": 5}}):
        with pytest.raises(ConfigError, match="eval_interval needs text to evaluate on; give eval"):
            configured(evaluates=False, **given)
    assert configured(evaluates=False).training.eval_interval is None
    assert configured().training.eval_interval == 40


def test_a_balancing_loss_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"load_balancing_loss_coef \(0.1\) has no effect with load_balancing 'none'",
    ):
        configured({"moe.load_balancing": "none"}, load_balancing_loss_coef=0.1)


def test_parallel_sizes_that_one_process_cannot_have_are_explained() -> None:
    with pytest.raises(
        TopologyError, match=r"world size \(1\) is not divisible by tensor_parallel"
    ):
        configured({"parallel.tensor_parallel_size": 2})


WRONG_WHOLE = [0, -1, 2.5, "8", True, float("nan"), None]
WRONG_REAL = [-1, "0.1", float("nan"), float("inf"), True, [0.1], None]


@pytest.mark.parametrize("value", WRONG_WHOLE)
@pytest.mark.parametrize("name", ["batch_size", "gradient_accumulation_steps", "sequence_length"])
def test_a_wrong_count_is_explained(name: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name} \(.*\) must be a whole number, at least 1; try"
    ):
        options(**{name: value})


@pytest.mark.parametrize("value", WRONG_REAL)
@pytest.mark.parametrize("name", ["learning_rate", "num_epochs"])
def test_a_wrong_number_is_explained(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name} \(.*\) must be a number, greater than 0; try"):
        options(**{name: value})
    with pytest.raises(ConfigError, match=rf"{name} \(0\) must be a number, greater than 0"):
        options(**{name: 0})


@pytest.mark.parametrize("value", [it for it in WRONG_REAL if it is not None])
@pytest.mark.parametrize(
    "name", ["weight_decay", "expert_dropout", "load_balancing_loss_coef", "router_z_loss_coef"]
)
def test_a_wrong_coefficient_is_explained(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name} \(.*\) must be a number, at least 0; try"):
        options(**{name: value})


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    import numpy as np
    import torch

    given = options(
        batch_size=np.int64(4), learning_rate=np.float32(0.5), sequence_length=torch.tensor(32)
    )
    assert (given.batch_size, given.learning_rate, given.sequence_length) == (4, 0.5, 32)
    assert type(given.batch_size) is type(given.sequence_length) is int
    assert type(given.learning_rate) is float


@pytest.mark.parametrize(
    ("given", "tokens", "epochs_given", "expected"),
    [
        ({}, 64 * 8, False, None),
        ({"max_steps": 3}, 64 * 80, False, None),
        ({}, 63, False, r"the text has 63 tokens, fewer than one sequence \(64\)"),
        ({}, 64 * 7, False, "a step takes 8 sequences and the text has only 7 of 64 tokens"),
        ({"max_steps": 3}, 64 * 80, True, r"max_steps \(3\) ends the training before num_epochs"),
        (
            {"max_steps": 30},
            64 * 80,
            False,
            "one pass over the text takes 10 steps, fewer than",
        ),
        ({"max_steps": 30, "num_epochs": 3}, 64 * 80, True, None),
    ],
)
def test_what_may_not_be_meant_is_told(
    given: dict[str, Any], tokens: int, epochs_given: bool, expected: str | None
) -> None:
    told = list(options(**given).cautions(tokens, epochs_given=epochs_given))
    if expected is None:
        assert told == []
    else:
        (line,) = told
        assert re.match(expected, line)
