"""What stands around Megatron's checkpoints: finding, comparing, checking, explaining."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from moe_megatron.checkpoint.formats.side_files import HF_FOLDER
from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.errors import CheckpointError
from moe_megatron.mcore.state import checkpoint

TRACKER = "latest_checkpointed_iteration.txt"


def literally(text: str) -> str:
    return f"^{re.escape(text)}$"


@pytest.fixture
def config() -> RunConfig:
    return load_config("test_tiny")


@pytest.fixture
def saved(tmp_path: Path, config: RunConfig) -> Path:
    """A folder of checkpoints whose newest is that of step 7, with its configuration."""
    (tmp_path / TRACKER).write_text("7\n")
    checkpoint.write_side_files(tmp_path / "iter_0000007", config)
    return tmp_path


def test_newest_step_is_what_the_tracker_says(saved: Path) -> None:
    assert checkpoint.latest_checkpoint(saved) == saved / "iter_0000007"
    assert checkpoint.step_to_ask_for(saved / "iter_0000007") is None
    assert checkpoint.latest_checkpoint(saved / "nowhere") is None


def test_other_step_than_the_newest_is_asked_for(saved: Path) -> None:
    assert checkpoint.step_to_ask_for(saved / "iter_0000005") == 5
    (saved / TRACKER).unlink()
    assert checkpoint.step_to_ask_for(saved / "iter_0000007") == 7
    with pytest.raises(CheckpointError, match="does not name release; write 'release' into it"):
        checkpoint.step_to_ask_for(saved / "release")


def test_release_is_a_checkpoint_too(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / TRACKER).write_text("release\n")
    checkpoint.write_side_files(tmp_path / "release", config)
    assert checkpoint.check_loadable(tmp_path, config) == tmp_path / "release"


@pytest.mark.parametrize("content", [b"soon", b"", b"-3", b"\xff\xfe"])
def test_tracker_without_a_step_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_bytes(content)
    with pytest.raises(
        CheckpointError,
        match=r"holds '.*' instead of a step; write the number of a complete iter_\* "
        r"folder into it\.$",
    ):
        checkpoint.latest_checkpoint(tmp_path)


def test_checkpoint_of_the_same_model_is_found(saved: Path, config: RunConfig) -> None:
    assert checkpoint.check_loadable(saved, config) == saved / "iter_0000007"


def test_folder_without_a_checkpoint_is_an_error(tmp_path: Path, config: RunConfig) -> None:
    message = (
        f"{tmp_path} holds no complete checkpoint ({TRACKER} is missing). Give the folder that "
        "contains the iter_* folders, or leave --load out to start anew."
    )
    with pytest.raises(CheckpointError, match=literally(message)):
        checkpoint.check_loadable(tmp_path, config)


def test_tracker_that_names_a_missing_folder_is_an_error(saved: Path, config: RunConfig) -> None:
    (saved / TRACKER).write_text("9")
    message = (
        f"{saved / TRACKER} names iter_0000009, but {saved / 'iter_0000009'} is missing; write the "
        "number of a complete iter_* folder into it."
    )
    with pytest.raises(CheckpointError, match=literally(message)):
        checkpoint.check_loadable(saved, config)


def test_other_model_is_refused_with_the_fields_that_differ(saved: Path, config: RunConfig) -> None:
    other = apply_overrides(
        config, {"model.hidden_size": 128, "moe.num_experts": 8, "data.vocab_size": 1000}
    )
    folder = saved / "iter_0000007"
    message = (
        f"{folder} was saved from another model: model.hidden_size is 64 there and 128 here; "
        "moe.num_experts is 4 there and 8 here; data.vocab_size is 512 there and 1000 here. Load "
        f"it with the configuration beside it (--config {folder / 'config.yaml'}), or choose a "
        "checkpoint of this model."
    )
    with pytest.raises(CheckpointError, match=literally(message)):
        checkpoint.check_loadable(saved, other)


@pytest.mark.parametrize(
    "change",
    [
        {"moe.top_k": 1, "moe.router.pre_softmax": False, "moe.load_balancing": "sinkhorn"}
        | {"moe.aux_loss_coef": 0},
        {"moe.capacity_factor": 1.0, "moe.pad_to_capacity": True},
        {"training.learning_rate": 1e-3, "training.train_steps": 99, "training.precision": "bf16"},
        {"parallel.tensor_parallel_size": 2, "parallel.expert_parallel_size": 2},
        {"data.sequence_length": 16, "data.paths": ["elsewhere"], "data.split": "1,1,1"},
        {"model.hidden_dropout": 0.1, "model.max_position_embeddings": 64},
    ],
)
def test_changes_that_shape_no_tensor_are_accepted(
    change: dict[str, Any], saved: Path, config: RunConfig
) -> None:
    changed = apply_overrides(config, change)
    assert checkpoint.check_loadable(saved, changed) == saved / "iter_0000007"


@pytest.mark.parametrize("content", [None, "model: [", "no_such_section: 1"])
def test_checkpoint_without_a_readable_configuration_is_left_to_megatron(
    content: str | None, saved: Path, config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    beside = saved / "iter_0000007" / "config.yaml"
    beside.unlink()
    if content is not None:
        beside.write_text(content)
    assert checkpoint.check_loadable(saved, config) == beside.parent
    assert ("cannot compare" in caplog.text) is (content is not None)


def test_side_file_gives_back_the_configuration_and_replaces_an_older_one(
    tmp_path: Path, config: RunConfig
) -> None:
    folder = tmp_path / "deep" / "iter_0000001"
    checkpoint.write_side_files(folder, RunConfig())
    checkpoint.write_side_files(folder, config)
    assert load_config(folder / "config.yaml") == config
    assert os.listdir(folder) == ["config.yaml"]


def test_folder_that_can_be_written_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    checkpoint.check_writable(folder)
    checkpoint.check_writable(folder)
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("path", "reason"), [("file/x", "Not a directory"), ("file", "File exists")]
)
def test_folder_that_cannot_be_made_is_an_error(path: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / path
    message = (
        f"{folder} cannot be written ({reason}). Change its permissions, or choose another folder "
        "with --run-dir."
    )
    with pytest.raises(CheckpointError, match=literally(message)) as caught:
        checkpoint.check_writable(folder)
    assert isinstance(caught.value.__cause__, OSError)


def fill_the_disk(_: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def read_nothing(folder: Path) -> None:
    (folder / "metadata.json").read_text()


def raise_it(error: BaseException) -> Any:
    def fail(_: Path) -> None:
        raise error

    return fail


FULL = (
    r"^the disk of {} is full or its quota used up \(\d+\.\d\d GiB free\), so the checkpoint could "
    r"not be written\. Free space or choose another folder with --run-dir; earlier checkpoints are "
    r"intact, and the run can resume from the newest one\.$"
)
FAILED = (
    r"^the checkpoint in {} could not be written or read: %s\. Check the folder and its disk; "
    r"--debug shows the whole error\.$"
)


def of_two_ranks() -> CheckpointException:
    """As torch reports the failures of all ranks."""
    failures = {0: ValueError("the first"), 1: KeyError("the last")}
    return CheckpointException("save", {r: _wrap_exception(e) for r, e in failures.items()})


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (fill_the_disk, FULL),
        (raise_it(OSError(errno.EDQUOT, "Disk quota exceeded")), FULL),
        (raise_it(RuntimeError("[enforce fail] No space left on device")), FULL),
        (read_nothing, FAILED % r".*No such file or directory: '{}/metadata\.json'"),
        (raise_it(of_two_ranks()), FAILED % r"KeyError: 'the last'"),
        (raise_it(CheckpointingException("not sharded")), FAILED % "not sharded"),
        (raise_it(CheckpointingException()), FAILED % "CheckpointingException"),
    ],
)
def test_failure_of_the_checkpoint_is_explained(fail: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "not_made_yet" / "checkpoints"
    place = re.escape(str(folder))
    with pytest.raises(CheckpointError) as caught, checkpoint.explained_errors(folder):
        fail(folder)
    assert re.fullmatch(message.replace("{}", place), str(caught.value), re.DOTALL)
    assert caught.value.__cause__ is not None


def test_failures_of_the_run_around_it_keep_their_type(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    with (
        pytest.raises(FileNotFoundError, match=r"tokens\.idx"),
        checkpoint.explained_errors(checkpoints),
    ):
        (tmp_path / "tokens.idx").read_bytes()
    for error in (
        ConnectionResetError(errno.ECONNRESET, "peer"),
        RuntimeError("shape"),
        KeyError(1),
    ):
        with pytest.raises(type(error)) as caught, checkpoint.explained_errors(checkpoints):
            raise error
        assert caught.value is error


def test_what_is_known_of_a_converted_model_travels_to_the_next_checkpoint(tmp_path: Path) -> None:
    loaded, folder = tmp_path / "release", tmp_path / "run" / "iter_0000003"
    (loaded / checkpoint.HUGGING_FACE).mkdir(parents=True)
    (loaded / checkpoint.HUGGING_FACE / "config.json").write_text("{}")
    checkpoint.write_side_files(folder, RunConfig(), loaded=loaded)
    assert (folder / HF_FOLDER / "config.json").read_text() == "{}"
    checkpoint.write_side_files(folder, RunConfig(), loaded=folder)  # resumed and saved in one step
    assert (folder / HF_FOLDER / "config.json").read_text() == "{}"


def test_tokenizer_travels_unless_the_converted_model_brought_its_own(tmp_path: Path) -> None:
    tokenizer, loaded = tmp_path / "tokenizer", tmp_path / "release"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "weights.bin"):
        (tokenizer / name).write_text("ours")
    checkpoint.write_side_files(tmp_path / "iter_0000001", RunConfig(), tokenizer=tokenizer)
    travelled = sorted(p.name for p in (tmp_path / "iter_0000001" / HF_FOLDER).iterdir())
    assert travelled == ["tokenizer.json", "tokenizer_config.json"]
    (loaded / HF_FOLDER).mkdir(parents=True)
    (loaded / HF_FOLDER / "tokenizer.json").write_text("theirs")
    folder = tmp_path / "iter_0000002"
    checkpoint.write_side_files(folder, RunConfig(), loaded=loaded, tokenizer=tokenizer)
    assert (folder / HF_FOLDER / "tokenizer.json").read_text() == "theirs"
    assert not (folder / HF_FOLDER / "tokenizer_config.json").exists()


ROUTED = {
    "name": {"moe.router.name": "loss_free"},
    "option": {"moe.router.score_function": "sigmoid"},
    "bias": {"moe.router.score_function": "sigmoid", "moe.expert_bias": True},
}


@pytest.mark.parametrize("changes", ROUTED.values(), ids=ROUTED)
def test_new_run_may_route_in_another_way(
    changes: dict[str, Any], saved: Path, config: RunConfig
) -> None:
    other = apply_overrides(config, changes)
    with pytest.raises(CheckpointError, match=r"another model: moe\.router.*, give --finetune"):
        checkpoint.check_loadable(saved, other)
    new_run = apply_overrides(other, {"megatron.finetune": True})
    assert checkpoint.check_loadable(saved, new_run) == saved / "iter_0000007"


def test_new_run_has_the_model_that_was_saved(saved: Path, config: RunConfig) -> None:
    changes = {"moe.router.name": "loss_free", "moe.num_experts": 8, "megatron.finetune": True}
    with pytest.raises(CheckpointError, match=r"num_experts is 4 there and 8 here") as error:
        checkpoint.check_loadable(saved, apply_overrides(config, changes))
    assert "--finetune" not in str(error.value)
