"""Every field says whether a resumed run may change it."""

from typing import Any

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.fields import settings_of
from moe_megatron.config.resume import ON_RESUME, flat, refused_changes
from moe_megatron.config.run import SECTIONS, RunConfig

SAVED = apply_overrides(
    load_config("test_tiny"), {"training.eval_interval": 2, "data.tasks": ("code",)}
)
MODEL = ("model", "moe")


def test_every_field_is_decided():
    """A new field of a section that is not decided as a whole must be added to the table."""
    whole = {name for name in ON_RESUME if "." not in name}
    fields = {name for name in flat(SAVED) if name.partition(".")[0] not in {*whole, *MODEL}}
    decided = {name for name in ON_RESUME if "." in name}
    assert {name for name in decided if not name.startswith("model.")} == fields
    assert decided <= set(flat(SAVED))
    assert whole <= {*SECTIONS, "run_dir", "preset", "megatron"}


def test_every_field_of_a_model_says_what_it_changes():
    for section in MODEL:
        assert [s.path for s in settings_of(SECTIONS[section]) if s.changes is None] == []


def refusals(saved: RunConfig, **overrides: Any) -> list[str]:
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return list(map(str, refused_changes(saved, apply_overrides(saved, changes))))


REFUSED: dict[str, tuple[Any, str]] = {
    "data.vocab_size": (400, "the embeddings in the checkpoint belong to its tokens"),
    "data.tokenizer": ("elsewhere", "the embeddings in the checkpoint belong to its tokens"),
    "data.sequence_length": (16, "sequences it has read in an order that would be another one"),
    "data.split": ("50,50,0", "texts that it has been trained on would become validation data"),
    "data.tasks": (("prose",), "the checkpoint knows its tasks by their numbers"),
    "training.seed": (5, "sequences it has read in an order that would be another one"),
    "training.eval_interval": (None, "with evaluation off, all texts are training data"),
    "model.num_prediction_layers": (1, "its optimizer knows those layers alone"),
    "finetune.train": (("router",), "state of those parameters that were trained then, and no"),
    "finetune.reselect": (True, "saved layer by layer and expert by expert, or is not"),
    "finetune.freeze": (("router",), "state of those parameters that were trained then, and no"),
    "adapter.rank": (4, "its optimizer knows the parameters that were trained then"),
    "parallel.distributed_optimizer": (False, "the other optimizer cannot read what this one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_field_that_must_be_kept_is_refused_by_name(name):
    value, reason = REFUSED[name]
    wanted = apply_overrides(SAVED, {name: value})
    (message,) = map(str, refused_changes(SAVED, wanted))
    assert message.startswith(f"{name} is {flat(SAVED)[name]} there and {value} here, but ")
    assert reason in message


def test_refused_are_all_that_the_table_keeps():
    kept = {name for name, rule in ON_RESUME.items() if rule is not None}
    sizes = {name for name in kept if name.startswith("parallel.") and name.endswith("size")}
    sizes |= {"parallel.virtual_pipeline_stages", "model.max_position_embeddings"}
    assert kept - sizes == set(REFUSED)


def test_positions_with_weights_are_kept():
    learned = apply_overrides(SAVED, {"model.position_embedding": "learned_absolute"})
    assert refusals(learned, model__max_position_embeddings=32) == []  # what null stands for
    (message,) = refusals(learned, model__max_position_embeddings=64)
    assert "every position has weights of its own. Leave it as it was, or train" in message


def test_parallel_sizes_may_change_where_the_optimizer_can_be_resharded():
    assert refusals(SAVED, parallel__tensor_parallel_size=2) == []


def test_parallel_sizes_are_kept_where_it_cannot():
    fixed = apply_overrides(SAVED, {"checkpoint.fully_reshardable": False})
    # The experts are split as attention is, unless they are told otherwise.
    messages = refusals(fixed, parallel__tensor_parallel_size=2)
    assert [m.partition(" ")[0] for m in messages] == [
        "parallel.tensor_parallel_size",
        "parallel.expert_tensor_parallel_size",
    ]
    assert "checkpoint.fully_reshardable was false). Give --no-load-optim" in messages[0]
    without = {"parallel.tensor_parallel_size": 2, "megatron.no-load-optim": True}
    assert list(refused_changes(fixed, apply_overrides(fixed, without))) == []


def test_evaluations_may_become_rarer():
    assert refusals(SAVED, training__eval_interval=50) == []
