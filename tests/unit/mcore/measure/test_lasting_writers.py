"""TensorBoard and W&B, as Megatron opens them, in a run that makes steps again or finds no room."""

from argparse import Namespace
from pathlib import Path

import pytest
from megatron.training import global_vars

from moe_megatron.mcore.measure.lasting_writers import (
    LastingWriter,
    lasting_writers,
    rewind_tensorboard,
)
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks.health import SinkHealth


def test_tensorboard_shows_the_steps_that_were_made_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = LastingWriter(SummaryWriter(str(tmp_path)), "tensorboard", SinkHealth())
    monkeypatch.setattr(global_vars, "_GLOBAL_TENSORBOARD_WRITER", writer)
    for step in (1, 2, 3, 4):
        writer.add_scalar("loss", float(step), step)
    rewind_tensorboard(2)
    writer.add_scalar("loss", 40.0, 4)  # step 3 is left out
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1.0), (2, 2.0), (4, 40.0)]


def test_run_without_tensorboard_has_nothing_to_rewind() -> None:
    assert global_vars._GLOBAL_TENSORBOARD_WRITER is None
    rewind_tensorboard(2)


def test_wandb_that_cannot_be_opened_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(global_vars, "_GLOBAL_WANDB_WRITER", None)
    place, health = tmp_path / "file", SinkHealth(tmp_path)
    place.write_text("")
    folder = str(place / "wandb")
    args = Namespace(
        **{"wandb_project": "p", "wandb_exp_name": "e", "wandb_entity": ""},
        **{"rank": 0, "world_size": 1, "wandb_save_dir": folder},
    )
    with lasting_writers(health):
        global_vars._set_wandb_writer(args)
    assert health.states()["wandb"].broken
    assert [event.kind for event in read_events(tmp_path)] == ["sink_failed"]
