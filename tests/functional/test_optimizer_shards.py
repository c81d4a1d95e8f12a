"""The optimizer is saved and loaded from where it is: as Megatron does it, but in little memory."""

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import MOCK_VOCAB_SIZE, Job
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.deep, pytest.mark.distributed, pytest.mark.timeout(600)]

SHAPE: dict[str, Any] = {
    "training.train_steps": 2,
    "training.warmup_steps": 0,
    "training.global_batch_size": 4,
    "checkpoint.save_interval": 1,
}
BF16 = {"training.precision": "bf16"}
EP2, TP2 = {"parallel.expert_parallel_size": 2}, {"parallel.tensor_parallel_size": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {**EP2, **BF16},
    "pp2": {"parallel.pipeline_parallel_size": 2, **BF16},
    "tp2_ep2": {**TP2, **EP2},
}
"""On four ranks each also has two or four data replicas, which cut parameters anywhere."""
FOLLOWED_BY = {"ep2": "pp2", "pp2": "ep2", "tp2_ep2": "tp2_ep2"}
"""Under which layout the checkpoint of each is resumed."""
NAMES = [
    "ep2",
    pytest.param("pp2", marks=pytest.mark.deep),  # a checkpoint of ep2 is resumed by it
    pytest.param("tp2_ep2", marks=pytest.mark.deep),  # test_weights.py has what it splits
]


@contextlib.contextmanager
def megatron_alone() -> Iterator[None]:
    """On a rank: save and load as Megatron does it, which gathers."""
    from moe_megatron.mcore.loop import engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "saving_own_shards", contextlib.nullcontext)
        patch.setattr(engine, "writing_in_place", contextlib.nullcontext)
        yield


def run(folder: Path, overrides: dict[str, Any], *callbacks: Any) -> None:
    """A rank's side: one run on mock data."""
    from moe_megatron.mcore.loop import engine
    from moe_megatron.run.machine import choose_machine

    config = Job(run_dir=folder, overrides=overrides).config
    job = engine.TrainingJob(
        config=config,
        data_paths=(),
        data_cache=folder.parent / "mock_data",
        vocab_size=MOCK_VOCAB_SIZE,
        end_of_document=0,
        run_dir=folder,
        callbacks=callbacks,
    )
    engine.run(job, choose_machine(config).settings)


def save_and_resume(root: Path, names: list[str]) -> None:
    """A rank's side: each layout by us and by Megatron; each reads what the other wrote."""
    from moe_megatron.mcore import world

    ways = {"ours": contextlib.nullcontext, "megatrons": megatron_alone}
    readers = {"ours": megatron_alone, "megatrons": contextlib.nullcontext}
    for name in names:
        for writer in ways:
            folder = root / f"{name}_{writer}"
            load = {"checkpoint.load": str(folder / "checkpoints"), "training.train_steps": 3}
            onward = {**SHAPE, **LAYOUTS[FOLLOWED_BY[name]], **load}
            with ways[writer]():
                run(folder, {**SHAPE, **LAYOUTS[name]})
            with readers[writer]():
                run(root / f"{folder.name}_on", onward)
    world.leave()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    root = tmp_path_factory.mktemp("shards")
    run_distributed(save_and_resume, root, chosen("layout"), world_size=4)
    return root


def assert_equal(ours: dict[str, torch.Tensor], megatrons: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == megatrons.keys()
    assert sum(key.startswith("optimizer.state.exp_avg_sq") for key in ours) > 5
    for key, tensor in ours.items():
        assert tensor.dtype == megatrons[key].dtype, key
        assert torch.equal(tensor, megatrons[key]), key


@pytest.mark.parametrize("layout", NAMES)
def test_checkpoint_holds_what_megatron_would_write(layout: str, root: Path) -> None:
    ours = whole_tensors(root / f"{layout}_ours" / "checkpoints" / "iter_0000002")
    assert_equal(ours, whole_tensors(root / f"{layout}_megatrons" / "checkpoints" / "iter_0000002"))


@pytest.mark.parametrize("layout", NAMES)
def test_megatron_reads_ours_and_we_read_megatrons_under_other_layouts(
    layout: str, root: Path
) -> None:
    ours = whole_tensors(root / f"{layout}_ours_on" / "checkpoints" / "iter_0000003")
    assert_equal(
        ours, whole_tensors(root / f"{layout}_megatrons_on" / "checkpoints" / "iter_0000003")
    )


# --- memory ---------------------------------------------------------------------------------------

LARGE: dict[str, Any] = {
    **SHAPE,
    **EP2,
    **BF16,
    "model.hidden_size": 512,
    "model.num_layers": 2,
    "moe.expert_hidden_size": 1024,
    "training.train_steps": 3,
    "checkpoint.save_interval": 3,
    "telemetry.enabled": False,  # it lets the process' peak begin anew with each step
}
"""17 million parameters: a checkpoint of 240 MB."""


def peaks(root: Path) -> dict[str, int]:
    """A rank's side: its largest size in memory so far, at several points, in bytes."""
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop.callbacks import Callback

    marks: dict[str, int] = {}

    class Marks(Callback):
        def on_checkpoint_start(self, step: int) -> None:
            self._mark("trained")

        def on_checkpoint_end(self, step: int) -> None:
            self._mark("saved")

        def on_train_start(self, model: list[Any], start_step: int) -> None:
            self._mark("resumed" if start_step else "built")

        def _mark(self, name: str) -> None:
            marks[name] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    load = {"checkpoint.load": str(root / "run" / "checkpoints"), "training.train_steps": 4}
    run(root / "run", LARGE, Marks())
    run(root / "resumed", {**LARGE, **load, "checkpoint.save_interval": None}, Marks())
    world.leave()
    return marks


def test_save_and_resume_add_less_than_a_quarter_of_the_checkpoint(tmp_path: Path) -> None:
    ranks = run_distributed(peaks, tmp_path, world_size=2)
    checkpoint = tmp_path / "run" / "checkpoints" / "iter_0000003"
    size = sum(path.stat().st_size for path in checkpoint.iterdir() if path.is_file())
    assert size > 200e6
    before = sum(marks["trained"] for marks in ranks)
    assert before - sum(marks["built"] for marks in ranks) > size / 4  # what is added would be seen
    assert sum(marks["saved"] for marks in ranks) - before < size / 4
    assert sum(marks["resumed"] for marks in ranks) - before < size / 4
