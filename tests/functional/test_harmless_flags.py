"""Flags that only log, profile or end a run change nothing that others read of it.

One run has all of them together, and W&B writes to a disk that is full after one step. The run
ends in order, and its checkpoint is read by everything that reads checkpoints.
"""

from pathlib import Path
from typing import Any

import pytest

from moe_megatron import MoEModel
from moe_megatron.checkpoint.convert import Execution, export_checkpoint
from moe_megatron.checkpoint.inspection import inspect_checkpoint
from moe_megatron.telemetry.journal import read_events
from moe_megatron.testing.distributed import NO_LAUNCHER, run_distributed
from moe_megatron.testing.small_disk import fill, small_disk

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(600)]

FLAGS = """
--tensorboard-log-interval 1 --tensorboard-queue-size 5 --log-timers-to-tensorboard
--log-validation-ppl-to-tensorboard --log-memory-to-tensorboard --log-world-size-to-tensorboard
--no-log-loss-scale-to-tensorboard --wandb-project project --wandb-exp-name name --wandb-entity me
--log-params-norm --log-throughput --log-progress --log-num-zeros-in-grad --timing-log-level 2
--timing-log-option all --log-interval 1 --no-barrier-with-level-1-timing --profile
--use-pytorch-profiler --profile-step-start 1 --profile-step-end 2 --profile-ranks 0
--record-shapes --pytorch-profiler-collect-shapes --exit-interval 100 --exit-duration-in-mins 100
--manual-gc --manual-gc-interval 1 --distributed-timeout-minutes 5
--logging-level 20 --moe-per-layer-logging --app-tag-run-name x --no-one-logger
--check-weight-hash-across-dp-replicas-interval 100 --train-sync-interval 1
--empty-unused-memory-level 1 --mock-data
""".split()


def train(run_dir: Path, disk: Path) -> list[float]:
    """The losses of three steps; W&B's disk is full after the first."""
    from dataclasses import replace

    from moe_megatron.cli.logs import configure_logging
    from moe_megatron.config import apply_overrides, load_config
    from moe_megatron.config.flags import split_flags
    from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
    from moe_megatron.run.start import start

    settings: dict[str, Any] = {
        "run_dir": str(run_dir),
        "training.train_steps": 3,
        "training.warmup_steps": 0,
        "checkpoint.save_interval": 3,
    }
    flags = [*FLAGS, "--tensorboard-dir", str(run_dir / "tensorboard")]
    config = apply_overrides(load_config("test_tiny"), {**settings, **split_flags(flags)})

    class Full(Callback):
        def on_step_end(self, event: StepEnd) -> None:
            if event.step == 1:
                fill(disk)

    attached = configure_logging(config, 0)
    done = start(config, attached=replace(attached, callbacks=(*attached.callbacks, Full())))
    return [float(loss) for loss in done.history.losses]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Any:
    place = tmp_path_factory.mktemp("flags")
    with small_disk(place / "disk", "1m") as disk:
        environment = {
            **NO_LAUNCHER,
            "MOE_MEGATRON_CACHE": str(cache),
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(disk),
            "WANDB_SILENT": "true",
        }
        words = (place / "run", disk)
        (losses,) = run_distributed(train, *words, world_size=1, environment=environment)
        yield *words, losses


def test_run_ends_with_all_its_steps_although_the_disk_of_wandb_is_full(run: Any) -> None:
    run_dir, _, losses = run
    assert len(losses) == 3
    trained = [event.fields["step"] for event in read_events(run_dir) if event.kind == "trained"]
    assert trained == [3]


def test_files_of_wandb_are_where_its_variable_says(run: Any) -> None:
    run_dir, disk, _ = run
    assert list((disk / "wandb").glob("offline-run-*"))
    assert [path for path in run_dir.rglob("*") if path.name == "wandb"] == []


def test_checkpoint_is_read_by_everything(run: Any, tmp_path: Path) -> None:
    run_dir, _, _ = run
    for place in (run_dir, run_dir / "checkpoints", run_dir / "checkpoints" / "iter_0000003"):
        model = MoEModel.from_pretrained(place)
        assert len(model.layers) == 2
        assert inspect_checkpoint(place).iteration == 3
    exported = tmp_path / "exported"
    export_checkpoint(run_dir, exported, execution=Execution(progress=False))
    ours, theirs = model.state_dict(), MoEModel.from_pretrained(exported).state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[name].equal(theirs[name]) for name in ours)
