"""Runs that are harmed on purpose end as a run ends that never saw the harm.

The reference of a skipped step is a run that leaves its data out by Megatron's own
`--iterations-to-skip`; that of a repeated step is a run that nothing happens to.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.checkpoint.integrity.manifest import MANIFEST
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.config.flags import split_flags
from moe_megatron.errors import FaultError, RecoveryError
from moe_megatron.mcore import world
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.recovery.policy import Action, Answer, Policy, Step
from moe_megatron.run.uptime import uptime
from moe_megatron.telemetry.journal import EVENTS_FILE, Event, read_events
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import step_records

pytestmark = pytest.mark.distributed

STEPS = 8
SETTINGS: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 1,
    "training.micro_batch_size": 2,
    "training.eval_interval": None,
    "checkpoint.save_interval": 2,
    "telemetry.history": False,
    "telemetry.console": False,
    "parallel.expert_parallel_size": 2,
    "moe.expert_bias": True,
    "moe.router": {"name": "top_k", "score_function": "sigmoid"},
    **split_flags(["--mock-data", "--hidden-dropout", "0.1", "--attention-dropout", "0.1"]),
}


@dataclass(frozen=True)
class Run:
    settings: dict[str, Any] = field(default_factory=dict)
    flags: str = ""
    harm: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    policy: int = 0
    """The step that a policy from outside skips."""
    damages: int = 0
    """The step whose checkpoint is damaged before step 6."""
    resumes: str = ""
    """Name of an earlier run, whose checkpoint of step 4 and journal this one starts with."""


RUNS = {
    "clean": Run(),
    "without_5": Run(flags="--iterations-to-skip 5"),
    "without_5_and_6": Run(flags="--iterations-to-skip 5 6"),
    "repeated": Run(harm="nan", options={"step": 5, "times": 1}),
    "skipped": Run(harm="nan", options={"step": 5}),
    "rolled_back": Run(
        harm="nan", options={"step": 6}, settings={"recovery.on_nonfinite": "rollback"}
    ),
    "replayed": Run(harm="expert", options={"step": 6, "layer": 1, "expert": 1, "times": 1}),
    "replayed_not_saved": Run(
        harm="expert", options={"step": 6, "layer": 1, "expert": 1, "times": 1, "late": True}
    ),
    "replayed_from_an_older": Run(
        harm="expert", options={"step": 6, "layer": 1, "expert": 1, "times": 1}, damages=4
    ),
    "spoiled_at_once": Run(harm="expert", options={"step": 1, "layer": 1, "expert": 1, "times": 1}),
    "spoiled_at_the_end": Run(
        harm="expert", options={"step": 8, "layer": 1, "expert": 1, "times": 1, "late": True}
    ),
    "stopped": Run(harm="nan", options={"step": 5}, settings={"recovery.on_nonfinite": "stop"}),
    "no_more_skips": Run(harm="nan", options={"step": 5}, settings={"recovery.max_skips": 0}),
    "no_more_rollbacks": Run(
        harm="nan",
        options={"step": 5},
        settings={"recovery.on_nonfinite": "rollback", "recovery.max_rollbacks": 0},
    ),
    "no_more_rollbacks_to_save": Run(
        harm="expert",
        options={"step": 6, "layer": 1, "expert": 1, "times": 1, "late": True},
        settings={"recovery.max_rollbacks": 0},
    ),
    "spike": Run(
        harm="spike",
        options={"step": 5},
        settings={"recovery.on_spike": "skip", "recovery.spike_window": 3},
    ),
    "disliked": Run(policy=5),
    "resumed": Run(resumes="clean"),
    "resumed_after_rollback": Run(resumes="rolled_back"),
}


DEEP = {
    *("replayed_from_an_older", "spoiled_at_once", "no_more_skips", "no_more_rollbacks_to_save"),
    *("no_more_rollbacks", "replayed", "resumed"),
}
"""Of which others show the same from another side."""


class Dislike(Policy):
    """A policy from outside: skips a step that it dislikes, by what it sees of its routing."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._routed = 0

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        for module in model[0].modules():
            if isinstance(module, MeasuredRouter):
                module.register_forward_hook(self._watch)

    def _watch(self, module: Any, inputs: Any, output: Any) -> None:
        self._routed = int(output[1].sum())

    def judge(self, step: Step) -> Answer | None:
        assert step.loss is None, "nobody has asked for it"
        if step.number != self._step or not self._routed:
            return None
        return Answer(action=Action.SKIP, reason=f"{self._routed} assignments are too many")


class Damage(Callback):
    """Flips a bit of a checkpoint once it has its checksums, before step 6."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._done = world.rank() != 0

    def on_step_start(self, step: int) -> None:
        if step == 6 and not self._done:
            self._done = True
            while not (self._checkpoint / MANIFEST).exists():
                time.sleep(0.01)
            file = min(self._checkpoint.glob("*.distcp"))
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)


def train(folder: Path, names: list[str]) -> dict[str, str]:
    """Make the runs on this rank; returns the errors of those that end with one."""
    from moe_megatron.run.start import Attachments, start
    from moe_megatron.testing.harms import HARMS

    errors = {}
    world.join("gloo")
    for name in names:
        run = RUNS[name]
        flags = split_flags(run.flags.split()) if run.flags else {}
        if run.resumes:
            flags = split_flags(["--ckpt-step", "4"])
            flags["checkpoint.load"] = str(folder / run.resumes / "checkpoints")
            copy_journal(folder / run.resumes, folder / name)
        given = {**SETTINGS, **flags, **run.settings, "run_dir": str(folder / name)}
        harms = [HARMS[run.harm](**run.options)] if run.harm else []
        harms += [Dislike(run.policy)] if run.policy else []
        if run.damages:
            harms.append(Damage(iteration_dir(folder / name / "checkpoints", run.damages)))
        config = apply_overrides(load_config("test_tiny"), given)
        try:
            start(config, attached=Attachments(callbacks=harms))
        except (FaultError, RecoveryError) as error:
            errors[name] = str(error)
    world.leave()
    return errors


def copy_journal(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    if (source / EVENTS_FILE).exists():
        shutil.copy(source / EVENTS_FILE, target)


@dataclass(frozen=True)
class Found:
    folder: Path
    errors: dict[str, str]

    def steps(self, name: str, first: int = 1) -> list[tuple[int, Any, Any]]:
        steps = step_records(self.folder / name)
        return [(s.step, s.loss, s.grad_norm) for s in steps if s.step >= first]

    def events(self, name: str, kind: str) -> list[Event]:
        return [event for event in read_events(self.folder / name) if event.kind == kind]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Found:
    folder = tmp_path_factory.mktemp("recovery")
    names = [name for name in RUNS if name not in DEEP or name in chosen("name")]
    errors = run_distributed(train, folder, names, world_size=2)
    assert errors[0] == errors[1], "an error ends every rank with the same words"
    return Found(folder, errors[0])


def test_bad_step_computed_again_leaves_no_trace(found: Found) -> None:
    assert found.steps("repeated") == found.steps("clean")


def test_skipped_step_equals_a_run_without_its_data(found: Found) -> None:
    assert found.steps("skipped", 6) == found.steps("without_5", 6)
    (event,) = found.events("skipped", "skipped")
    assert event.fields["step"] == 5
    assert "first not finite: the output of decoder.final_layernorm" in event.fields["reason"]


def test_rolled_back_run_equals_a_run_without_the_data_up_to_the_bad_step(found: Found) -> None:
    assert found.steps("rolled_back", 7) == found.steps("without_5_and_6", 7)
    (event,) = found.events("rolled_back", "rolled_back")
    assert (event.fields["step"], event.fields["to_step"]) == (6, 4)


def test_later_attempt_leaves_out_what_was_left_out_before(found: Found) -> None:
    assert found.steps("resumed_after_rollback", 7) == found.steps("rolled_back", 7)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["resumed"])
def test_later_attempt_of_an_unhurt_run_leaves_nothing_out(name: str, found: Found) -> None:
    assert found.steps(name, 5) == found.steps("clean", 5)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["replayed"])
def test_damaged_weights_are_replaced_by_those_of_the_checkpoint(name: str, found: Found) -> None:
    assert found.steps(name) == found.steps("clean")  # step 5 was made twice
    (event,) = found.events(name, "rolled_back")
    assert (event.fields["step"], event.fields["to_step"]) == (6, 4)
    assert event.fields["left_out"] is False
    assert event.fields["lost_steps"] == 1
    assert "first not finite: the weights of" in event.fields["reason"]


def test_damaged_weights_are_never_saved(found: Found) -> None:
    assert found.steps("replayed_not_saved") == found.steps("clean")
    (event,) = found.events("replayed_not_saved", "rolled_back")
    assert (event.fields["step"], event.fields["to_step"]) == (6, 4)
    saved = [event.fields["step"] for event in found.events("spoiled_at_the_end", "saved")]
    assert saved == [2, 4, 6]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param(
            "spoiled_at_once", "there is no checkpoint to go back to", marks=pytest.mark.deep
        ),
        ("spoiled_at_the_end", "step 8 was the last, but is not saved"),
    ],
)
def test_damage_that_only_a_new_start_mends_ends_the_attempt(
    name: str, words: str, found: Found
) -> None:
    assert words in found.errors[name]
    assert "first not finite" in found.errors[name]


@pytest.mark.deep
@pytest.mark.parametrize("name", ["replayed_from_an_older"])
def test_rollback_passes_over_a_damaged_checkpoint(name: str, found: Found) -> None:
    assert found.steps(name) == found.steps("clean")
    (aside,) = found.events(name, "set_aside")
    assert aside.fields["step"] == 4
    assert "is damaged between bytes" in aside.fields["reason"]
    (event,) = found.events(name, "rolled_back")
    assert (event.fields["to_step"], event.fields["lost_steps"]) == (2, 3)
    checkpoints = found.folder / name / "checkpoints"
    assert (checkpoints / "iter_0000004.damaged").is_dir()
    assert (checkpoints / "iter_0000004").is_dir(), "and it was written again"


@pytest.mark.parametrize(
    "name",
    [pytest.param("replayed", marks=pytest.mark.deep), "replayed_not_saved", "rolled_back"],
)
def test_records_hold_each_step_once_and_its_lost_time_is_known(name: str, found: Found) -> None:
    routing = [snapshot.step for snapshot in read_routing(found.folder / name / ROUTING_FILE)]
    steps = [step for step, *_ in found.steps(name)]
    assert routing == steps == sorted(set(steps))
    used = uptime(found.folder / name).account
    (event,) = found.events(name, "rolled_back")
    assert used.lost_steps == event.fields["lost_steps"] == (2 if "saved" in name else 1)
    assert used.kept_steps == len(steps)
    assert used.lost["recomputed"] >= event.fields["lost_seconds"] > 0
    assert used.lost["load"] >= event.fields["seconds"] > 0
    assert sum(used.rows().values()) == pytest.approx(used.wall, abs=1e-6)
    assert all(seconds >= 0 for seconds in used.rows().values()), used.rows()


def test_spike_is_skipped_before_its_update(found: Found) -> None:
    assert found.steps("spike", 6) == found.steps("without_5", 6)
    (event,) = found.events("spike", "skipped")
    assert "10 deviations" in event.fields["reason"]


def test_policy_from_outside_is_asked(found: Found) -> None:
    assert found.steps("disliked", 6) == found.steps("without_5", 6)
    (event,) = found.events("disliked", "skipped")
    assert event.fields["reason"].endswith("assignments are too many")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stopped", "step 5 has no finite gradients (loss nan, gradient norm nan"),
        pytest.param(
            "no_more_skips", "more than the 0 of recovery.max_skips", marks=pytest.mark.deep
        ),
        pytest.param(
            *("no_more_rollbacks", "one more rollback than the 0 of recovery.max_rollbacks"),
            marks=pytest.mark.deep,
        ),
        pytest.param(
            "no_more_rollbacks_to_save",
            "first not finite, before a checkpoint: the weights of",
            marks=pytest.mark.deep,
        ),
    ],
)
def test_run_that_cannot_mend_itself_says_why(name: str, words: str, found: Found) -> None:
    assert words in found.errors[name]
    assert found.steps(name) == found.steps("clean")[: 6 if name.endswith("to_save") else 4]
    bounded = name.startswith("no_more_rollbacks")
    assert ("one more rollback than the 0" in found.errors[name]) is bounded
