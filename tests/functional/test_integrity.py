"""Real runs that save, are damaged, and go on: from the newest checkpoint that is whole."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.integrity.check import check_folder
from moe_megatron.checkpoint.integrity.manifest import MANIFEST, read_manifest
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.testing.distributed import RankError, run_distributed, start_ranks
from moe_megatron.testing.jobs import step_records
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 8
SHAPE: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.eval_interval": 2,
    "training.eval_steps": 1,
    "parallel.expert_parallel_size": 2,
    "checkpoint.save_interval": 2,
    "telemetry.console": False,
    "megatron.mock-data": True,
}


def train(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A rank's part: runs by folder, one after another; what was said."""
    from moe_megatron.mcore import world
    from moe_megatron.run.start import start

    said: list[str] = []
    for folder, overrides in runs.items():
        config = apply_overrides(load_config("test_tiny"), {**SHAPE, **overrides})
        start(apply_overrides(config, {"run_dir": folder}), say=said.append)
    world.leave()
    return said


def run(runs: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    named = {str(folder): overrides for folder, overrides in runs.items()}
    said: list[str] = run_distributed(train, named, world_size=2)[0]
    return said


def saved(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"iter_{step:07d}"


def resume(folder: Path, **more: Any) -> dict[str, Any]:
    return {"checkpoint.load": str(folder / "checkpoints"), **more}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption. Not to be changed."""
    folder = tmp_path_factory.mktemp("integrity") / "straight"
    best = {"checkpoint.keep_best": 1, "checkpoint.keep_every": 4}
    run({folder: {}, folder.with_name("background"): {"checkpoint.async_save": True, **best}})
    return folder


@pytest.fixture
def stopped(straight: Path, tmp_path: Path) -> Path:
    """The same run as if it had been stopped after step 6."""
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.rmtree(saved(folder, 8))
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("6")
    return folder


def flip_a_bit_of_the_optimizer(folder: Path) -> str:
    with TorchDist(folder) as found:
        key = next(key for key in found.tensors if "exp_avg" in key)
        tensor = found.tensors[key]
        offset = found.data_offset(tensor, tensor.chunks[0])
        path = folder / found.files[tensor.chunks[0].record.file]
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    return key


def check_same_end(folder: Path, straight: Path) -> None:
    ours, theirs = (whole_tensors(saved(it, STEPS)) for it in (folder, straight))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    for file in (METRICS_FILE, ROUTING_FILE):
        lines = [len((it / file).read_text().splitlines()) for it in (folder, straight)]
        assert lines[0] == lines[1], file
    losses = [[r.loss for r in step_records(it)] for it in (folder, straight)]
    assert losses[0] == losses[1]
    profiles = [RoutingProfile.load(saved(it, STEPS) / PROFILE_FILE) for it in (folder, straight)]
    assert (profiles[0].tokens_per_expert == profiles[1].tokens_per_expert).all()


def test_every_checkpoint_of_a_run_is_valid_and_covers_what_stands_beside(straight: Path) -> None:
    for step in (2, 4, 6, 8):
        assert check_folder(saved(straight, step)).state == "valid"
    manifest = read_manifest(saved(straight, 4))
    assert manifest is not None
    assert manifest.notes["step"] == 4
    assert manifest.notes["validation_loss"] > 0
    names = {".metadata", "__0_0.distcp", "__1_0.distcp", "config.yaml", "metadata.json"}
    assert names | {PROFILE_FILE} == set(manifest.files)


def test_written_in_the_background_they_are_valid_too_and_old_ones_are_removed(
    straight: Path,
) -> None:
    folder = straight.with_name("background")
    steps = {int(path.name[5:]) for path in (folder / "checkpoints").glob("iter_*")}
    for step in steps:
        assert check_folder(saved(folder, step)).state == "valid"
    manifests = {step: read_manifest(saved(straight, step)) for step in (2, 4, 6, 8)}
    best = min(manifests, key=lambda step: manifests[step].notes["validation_loss"])  # type: ignore[union-attr]
    assert steps == {4, 8, best}
    events = list(read_events(folder))
    removed = [event.fields["step"] for event in events if event.kind == "removed"]
    assert set(removed) == {2, 4, 6, 8} - steps


def test_run_goes_on_from_the_one_before_a_flipped_bit_and_ends_as_if_nothing_was(
    stopped: Path, straight: Path
) -> None:
    key = flip_a_bit_of_the_optimizer(saved(stopped, 6))
    said = run({stopped: resume(stopped)})
    (line,) = [line for line in said if line.startswith("checkpoint set aside")]
    assert f"{saved(stopped, 6)}: " in line
    assert key in line
    assert f"going on from: {saved(stopped, 4)}" in said
    (event,) = [event for event in read_events(stopped) if event.kind == "set_aside"]
    assert event.fields["step"] == 6
    assert key in event.fields["reason"]
    assert (stopped / "checkpoints" / "iter_0000006.damaged").is_dir()
    check_same_end(stopped, straight)


def test_folder_of_another_run_is_read_around_its_damage_and_not_changed(
    stopped: Path, straight: Path, tmp_path: Path
) -> None:
    os.truncate(saved(stopped, 6) / "__1_0.distcp", 5000)
    tracker = stopped / "checkpoints" / "latest_checkpointed_iteration.txt"
    before = sorted(path.name for path in (stopped / "checkpoints").iterdir())
    said = run({tmp_path / "other": resume(stopped)})
    assert f"going on from: {saved(stopped, 4)}" in said
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == before
    assert tracker.read_text() == "6"
    ours, theirs = (whole_tensors(saved(it, STEPS)) for it in (tmp_path / "other", straight))
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_where_no_checkpoint_is_whole_the_run_ends_and_lists_the_damage(stopped: Path) -> None:
    for step in (2, 4, 6):
        os.truncate(saved(stopped, step) / "__0_0.distcp", 100)
    with pytest.raises(RankError) as ended:
        run({stopped: resume(stopped)})
    text = str(ended.value)
    assert "holds no checkpoint that can be used" in text
    for step in (2, 4, 6):
        assert f"iter_{step:07d}: {saved(stopped, step)}/__0_0.distcp is truncated" in text
        assert saved(stopped, step).is_dir(), "nothing was renamed"


# --- killed at once ------------------------------------------------------------------------------


def train_until_killed(folder: str, moment: str, overrides: Mapping[str, Any]) -> None:
    """A rank's part: SIGKILL to all ranks while step 4 is saved, or before it has checksums."""
    from moe_megatron.mcore.loop.callbacks import Callback
    from moe_megatron.run.start import Attachments, start

    config = apply_overrides(load_config("test_tiny"), {**SHAPE, **overrides, "run_dir": folder})
    file = saved(Path(folder), 4) / "__0_0.distcp"

    def die() -> None:
        while not file.exists():
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

    class Dies(Callback):
        def on_checkpoint_start(self, step: int) -> None:
            if step == 4 and moment == "writing":
                threading.Thread(target=die, daemon=True).start()

        def on_checkpoint_complete(self, step: int) -> None:
            if step == 4:
                os.kill(os.getpid(), signal.SIGKILL)

    start(config, attached=Attachments(callbacks=[Dies()]))


def is_empty(group: int) -> bool:
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("moment", "background"),
    [
        ("writing", False),
        pytest.param("complete", False, marks=pytest.mark.deep),
        pytest.param("writing", True, marks=pytest.mark.deep),
    ],
)
def test_run_that_is_killed_while_it_saves_loses_no_more_than_since_the_checkpoint_before(
    moment: str, background: bool, straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    overrides = {"checkpoint.async_save": background}
    with start_ranks(train_until_killed, str(folder), moment, overrides, world_size=2) as ranks:
        ends = ranks.wait()
        groups = list(ranks.processes)
    assert all(map(is_empty, groups)), "a writer has outlived its rank"
    assert any(end.exit_code == -signal.SIGKILL and not end.was_ended for end in ends)
    run({folder: resume(folder)})
    (resumed,) = [event for event in read_events(folder) if event.kind == "resumed"]
    assert resumed.fields["step"] == 2
    check_same_end(folder, straight)
    for step in (2, 4, 6, 8):
        assert check_folder(saved(folder, step)).state == "valid"


# --- every byte counts ---------------------------------------------------------------------------


def flip(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def zero_a_page(path: Path, random: Random) -> None:
    data = path.read_bytes()
    pages = [at for at in range(0, len(data), 4096) if any(data[at : at + 4096])]
    at = random.choice(pages)
    size = len(data[at : at + 4096])
    path.write_bytes(data[:at] + bytes(size) + data[at + 4096 :])


def append(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes() + random.randbytes(random.randint(1, 5000)))


def delete(path: Path, random: Random) -> None:
    path.unlink()


def swap(path: Path, random: Random) -> None:
    others = [it for it in path.parent.iterdir() if it != path]
    other = random.choice(others)
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


@pytest.mark.deep
def test_none_of_500_mutations_is_accepted_and_each_is_named(
    straight: Path, tmp_path: Path
) -> None:
    original, folder, random = saved(straight, 8), tmp_path / "iter_0000008", Random(12)
    names = sorted(path.name for path in original.iterdir())
    harms = [flip, truncate, zero_a_page, append, delete, swap]
    for number in range(500):
        shutil.copytree(original, folder)
        name, harm = random.choice(names), random.choice(harms)
        harm(folder / name, random)
        found = check_folder(folder)
        case = (number, harm.__name__, name)
        if harm is delete and name == MANIFEST:
            assert found.state == "unverified", case
        else:
            assert found.state == "damaged", case
            assert name in "".join(found.problems) or harm is swap, (case, found.problems)
            assert found.problems, case
        shutil.rmtree(folder)
